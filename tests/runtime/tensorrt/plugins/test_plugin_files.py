"""The kernels that an export writes: PTX with the plugin's parameters and no others, which fits every later GPU.

Kernels are either interpreted or compiled in one process, so these compile in a process of their own.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from gatefx.errors import MissingDependencyError
from gatefx.runtime.ops.ptx import POINTER, WHOLE_NUMBER, parameter_kinds
from gatefx.runtime.tensorrt import plugin_files, plugins
from gatefx.runtime.tensorrt.plugin_files import Needed, write_plugins
from gatefx.runtime.tensorrt.plugins.kernels import Kernel, Kernels

from ...compiling_ahead import rows_said_by

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="triton is not installed here: no kernel is compiled (pip install 'gatefx[triton]')",
)
#: Pointers before and after the one whole number.
PARAMETERS = {"GatedLora": (6, 1), "TokenGatedLora": (7, 1), "RoutedRows": (6, 1)}
#: PTX of compute capability 8.0 is assembled for each of these.
ARCHITECTURES = (80, 90, 120)
PROGRAM = """
import dataclasses, json, sys
from pathlib import Path
from gatefx.runtime.ops.triton_ahead import compile_ahead, faults, without_hidden
from gatefx.runtime.tensorrt.plugin_files import ARCHITECTURE, OPERATORS, Needed, write_plugins
folder, needed = Path(sys.argv[1]), [Needed(*row) for row in json.loads(sys.argv[2])]
write_plugins(folder, needed)
for one in needed:
    for architecture in json.loads(sys.argv[3]):
        whole = compile_ahead(OPERATORS[one.operator], one.element, one.rank, ARCHITECTURE, (one.d_in, one.d_out))
        cut = without_hidden(whole, architecture)
        row = dataclasses.asdict(cut) | {"faults": faults(cut, one.element, architecture), "whole": whole.parameters}
        print(json.dumps(row | {"case": f"{one} sm_{architecture}", "operator": one.operator}))
"""


def written(folder: Path, needed: list[Needed]) -> list[dict[str, Any]]:
    """Have `folder` written; what the texts need of each GPU."""
    rows = json.dumps([list(vars(one).values()) for one in needed])
    return rows_said_by(PROGRAM, str(folder), rows, json.dumps(ARCHITECTURES))


def assert_fit(row: dict[str, Any]) -> None:
    assert row["faults"] == [], row["case"]
    assert (row["stack"], row["spilled"], row["hidden"]) == (0, 0, 0), row["case"]
    before, after = PARAMETERS[row["operator"]]
    assert parameter_kinds(row["ptx"]) == (*[POINTER] * before, WHOLE_NUMBER, *[POINTER] * after)
    assert row["whole"] == before + 1 + after + 2
    assert f".entry {row['name']}(" in row["ptx"]
    assert ".target sm_80" in row["ptx"]


#: One of each operator and type, sizes odd and even, among them the widest rank in float32.
SAMPLE = [
    Needed("GatedLora", "fp16", 768, 768, 8, 12),
    Needed("TokenGatedLora", "fp32", 45, 67, 64, 1),
    Needed("RoutedRows", "bf16", 768, 3072, 0, 6),
]


@needs_triton
def test_a_folder_holds_kernels_and_what_registers_them(tmp_path: Path) -> None:
    rows = written(tmp_path, SAMPLE)
    for row in rows:
        assert_fit(row)
    kernels = Kernels.read(tmp_path / "plugins")
    for needed, kernel in zip(SAMPLE, kernels.table, strict=True):
        assert {name: getattr(kernel, name) for name in vars(needed)} == vars(needed)
        text = kernels.ptx(kernel)
        assert text in [row["ptx"] for row in rows]
        # Nothing of the machine that compiled it.
        assert ".loc" not in text
        assert str(Path(plugins.__file__).parents[3]) not in text
        assert (kernel.threads, kernel.rows) == (128, 32)
    assert [kernel.columns for kernel in kernels.table] == [64, 16, 64]
    modules = {path.name: path.read_text() for path in Path(plugins.__file__).parent.glob("*.py")}
    assert {path.name: path.read_text() for path in (tmp_path / "plugins").glob("*.py")} == modules
    assert "gatefx" not in {
        line.split()[1] for text in modules.values() for line in text.splitlines() if line[:4] == "from"
    }


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("operator", PARAMETERS)
@pytest.mark.parametrize("element", ["fp16", "bf16", "fp32"])
def test_every_kernel_fits_every_gpu(operator: str, element: str, tmp_path: Path) -> None:
    ranks = [0] if operator == "RoutedRows" else [8, 17, 64]
    for row in written(tmp_path, [Needed(operator, element, 768, 768, rank, 1) for rank in ranks]):
        assert_fit(row)


def test_without_triton_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gatefx.runtime.ops.triton_ahead", None)
    with pytest.raises(MissingDependencyError, match="'triton'"):
        write_plugins(tmp_path, SAMPLE[:1])


def test_table_and_operators_agree() -> None:
    assert set(plugin_files.OPERATORS) == set(PARAMETERS)
    assert set(Needed.__dataclass_fields__) <= set(Kernel.__dataclass_fields__)
