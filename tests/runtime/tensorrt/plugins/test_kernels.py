"""The table of kernels: what is written is read again, and nothing else is taken for one."""

from __future__ import annotations

from pathlib import Path

import pytest

from gatefx.runtime.tensorrt.plugins.kernels import TABLE_FILE, Kernel, Kernels, written_table

KERNEL = Kernel("GatedLora", "fp16", 768, 3072, 8, 12, 128, 6144, 32, 64, "gated_lora_kernel", "gated_lora.ptx")


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    other = Kernel("RoutedRows", "bf16", 45, 67, 0, 1, 256, 12288, 32, 16, "routed_linear_kernel", "routed.ptx")
    (tmp_path / TABLE_FILE).write_text(written_table([KERNEL, other]))
    (tmp_path / "routed.ptx").write_text("text")

    kernels = Kernels.read(tmp_path)

    assert kernels.table == (KERNEL, other)
    assert kernels.find("RoutedRows", "bf16", (45, 67, 0)) == other
    assert kernels.ptx(other) == "text"


@pytest.mark.parametrize(
    ("operator", "element", "sizes"),
    [
        ("TokenGatedLora", "fp16", (768, 3072, 8)),
        ("GatedLora", "fp32", (768, 3072, 8)),
        ("GatedLora", "fp16", (3072, 768, 8)),
        ("GatedLora", "fp16", (768, 3072, 16)),
    ],
)
def test_a_kernel_that_is_not_there_is_named(
    operator: str, element: str, sizes: tuple[int, int, int], tmp_path: Path
) -> None:
    (tmp_path / TABLE_FILE).write_text(written_table([KERNEL]))
    with pytest.raises(LookupError, match=f"{operator} for {element}") as caught:
        Kernels.read(tmp_path).find(operator, element, sizes)
    assert "plugins=True" in str(caught.value)


def test_another_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / TABLE_FILE).write_text(written_table([KERNEL]).replace("nodes", "count", 1))
    with pytest.raises(ValueError, match="begins with"):
        Kernels.read(tmp_path)
