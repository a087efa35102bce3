from __future__ import annotations

from pathlib import Path

import pytest

from gatefx.errors import ArtifactError
from gatefx.runtime.manifest import is_inside, seal, unseal

DESCRIPTION = {"methods": {"ccm": {}}, "budget": 6, "inputs": [], "outputs": [], "axes": {}}
ENTRY = {"sha256": "0" * 64, "bytes": 1}


@pytest.mark.parametrize("name", ["model.onnx", "a/b.txt", "..data", "a..b", "ünïcode.bin"])
def test_names_inside_the_folder(name: str) -> None:
    assert is_inside(name)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "a/../../x", "/etc/passwd", "C:\\x", "C:x", "a\\b", "\\\\host\\share", "a//b", "a/", "./a",
     "x\0y", "gatefx.json"],
)  # fmt: skip
def test_names_outside_the_folder(name: str) -> None:
    assert not is_inside(name)


def test_a_sealed_manifest_that_names_a_file_outside_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "gatefx.json"
    path.write_text(seal(DESCRIPTION, {"../../outside": ENTRY}), encoding="utf-8")
    with pytest.raises(ArtifactError, match="outside its folder"):
        unseal(path)


@pytest.mark.parametrize("entry", [{}, {"sha256": "0", "bytes": 1}, {"sha256": "0" * 64, "bytes": "1"}])
def test_an_entry_without_hash_or_size_is_refused(tmp_path: Path, entry: dict[str, object]) -> None:
    path = tmp_path / "gatefx.json"
    path.write_text(seal(DESCRIPTION, {"model.onnx": entry}), encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"no hash and size for 'model\.onnx'"):
        unseal(path)


def test_seal_and_unseal_are_inverse(tmp_path: Path) -> None:
    path = tmp_path / "gatefx.json"
    path.write_text(seal({**DESCRIPTION, "report": {"é": [0.1, 1e-30, None]}}, {"a": ENTRY}), encoding="utf-8")
    content = unseal(path)
    assert content["report"] == {"é": [0.1, 1e-30, None]}
    assert content["files"] == {"a": ENTRY}
