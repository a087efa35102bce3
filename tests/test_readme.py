"""The README's Python blocks run, in order, in one namespace."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[1] / "README.md"


def blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), flags=re.S | re.M)


@pytest.mark.packages
def test_blocks_run_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    from gatefx.models.packaged import PackagedDataError, checkpoint, sentences

    try:
        checkpoint("minilm-l3")
        sentences("rt")
    except PackagedDataError as error:
        pytest.skip(f"a package cannot be had: {error}")
    namespace: dict[str, object] = {}
    for number, block in enumerate(blocks()):
        exec(compile(block, f"README block {number}", "exec"), namespace)
    assert "CPUExecutionProvider" in capsys.readouterr().out


def test_make_targets_named_in_the_readme_exist() -> None:
    makefile = README.with_name("Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", README.read_text(encoding="utf-8"), flags=re.M):
        assert re.search(rf"^{target}:", makefile, flags=re.M), target
