"""`gatefx export tensorrt`: a folder from the command line, and what it says to sizes it cannot read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from gatefx.errors import InputError
from gatefx.tools.compiling import parse_sizes

Command = Callable[..., tuple[int, str, str]]


def test_a_folder_for_an_engine(gatefx: Command, gates_folder: Path, data_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, printed, err = gatefx(
        "export", "tensorrt", gates_folder, out, "--data", data_file, "--precision", "bf16",
        "--size", "batch=1:2:4", "--size", "sequence=3:8:16",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert f"written: {out}" in printed
    assert "remains: model.engine: run build_engine" in printed
    manifest = json.loads((out / "gatefx.json").read_text())
    assert (manifest["backend"], manifest["precision"]) == ("tensorrt", "bf16")
    (profile,) = json.loads((out / "profiles.json").read_text())["profiles"]
    assert profile["input_ids"] == {"min": [1, 3], "opt": [2, 8], "max": [4, 16]}
    assert (out / "tokenizer.json").is_file()
    code, printed, err = gatefx("inspect", out)
    assert (code, err) == (0, "")
    assert "exported model for tensorrt" in printed


def test_a_folder_for_torch_tensorrt(gatefx: Command, gates_folder: Path, data_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = "export", "tensorrt", gates_folder, out, "--data", data_file, "--through", "torch-tensorrt"
    code, printed, err = gatefx(*arguments)
    assert (code, err) == (0, "")
    assert f"written: {out}" in printed
    assert json.loads((out / "gatefx.json").read_text())["through"] == "torch_tensorrt"
    assert (out / "program.pt2").is_file()
    code, printed, err = gatefx("inspect", out)
    assert (code, err) == (0, "")
    assert "exported model for tensorrt" in printed


def test_sizes_that_the_model_lacks_are_refused(
    gatefx: Command, gates_folder: Path, data_file: Path, tmp_path: Path
) -> None:
    arguments = "export", "tensorrt", gates_folder, tmp_path / "out", "--data", data_file, "--size", "height=1:2:3"
    code, printed, err = gatefx(*arguments)
    assert (code, printed) == (2, "")
    assert "sizes for height" in err
    assert not (tmp_path / "out").exists()


def test_sizes_as_people_type_them() -> None:
    assert parse_sizes(None) is None
    assert parse_sizes(["batch=1:8:32", "sequence=4: 5:6"]) == {"batch": (1, 8, 32), "sequence": (4, 5, 6)}


@pytest.mark.parametrize("text", ["batch", "batch=", "=1:2:3", "batch=1:two:3", "batch=1:-2:3"])
def test_texts_that_are_no_sizes_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="no sizes") as caught:
        parse_sizes([text])
    assert caught.value.given == text


def test_an_axis_has_its_sizes_once() -> None:
    with pytest.raises(InputError, match="no sizes") as caught:
        parse_sizes(["batch=1:2:4", "batch=1:8:32"])
    assert caught.value.given == "batch=1:8:32"
