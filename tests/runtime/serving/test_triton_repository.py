"""A repository holds what its back end needs, complete or not at all, and the model in it answers as before."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from typer.testing import CliRunner

from gatefx.errors import ArtifactError, InputError
from gatefx.runtime.native.library import NativeStatus
from gatefx.runtime.serving import triton_repository as module
from gatefx.runtime.serving.options import ServeOptions
from gatefx.runtime.serving.triton_repository import Repository, write_repository
from gatefx.tools.cli import app


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_graph_of_a_repository_runs_in_plain_onnx_runtime(
    served_folder: Path, session: Any, text: Any, tmp_path: Path
) -> None:
    written = write_repository(served_folder, Repository(tmp_path / "models", "reviews"))
    assert written == tmp_path / "models" / "reviews"
    assert names(written) == {"config.pbtxt", "1/model.onnx", "1/model.onnx.data"}
    plain = onnxruntime.InferenceSession(written / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    assert np.allclose(plain.run(["logits"], text(0))[0], session.run(text(0))["logits"], atol=1e-5)
    assert {path.name for path in tmp_path.iterdir()} == {"models"}


def test_a_ragged_model_holds_the_whole_artifact(served_folder: Path, tmp_path: Path) -> None:
    written = write_repository(served_folder, Repository(tmp_path, "reviews"), ragged=True)
    assert names(written) == {"config.pbtxt", "1/model.py"} | {f"1/artifact/{name}" for name in names(served_folder)}
    assert "import TritonPythonModel" in (written / "1" / "model.py").read_text()


def test_adapters_to_choose_from_are_refused(
    served_folder: Path, session: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = SimpleNamespace(
        inputs=session.inputs, outputs=session.outputs, adapters=("legal",), manifest=session.manifest
    )
    monkeypatch.setattr(module, "open_session", lambda *_: fake)
    for ragged in (False, True):
        with pytest.raises(InputError, match="one adapter") as caught:
            write_repository(served_folder, Repository(tmp_path / "models", "reviews"), ragged=ragged)
        assert caught.value.given == "legal"
    assert not (tmp_path / "models").exists()


def test_native_kernels_go_along_under_the_servers_path(
    served_folder: Path, session: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "libgatefx.so"
    library.write_bytes(b"kernels")
    fake = SimpleNamespace(
        inputs=session.inputs,
        outputs=session.outputs,
        adapters=session.adapters,
        manifest=session.manifest,
        native=NativeStatus(True, "", library),
    )
    monkeypatch.setattr(module, "open_session", lambda *_: fake)
    for mount, seen in ((None, f"{tmp_path}/a"), ("/models/", "/models")):
        name = "there" if mount else "here"
        written = write_repository(served_folder, Repository(tmp_path / "a", name, mount))
        assert (written / "libgatefx.so").read_bytes() == b"kernels"
        assert f'op_library_filename: "{seen}/{name}/libgatefx.so"' in (written / "config.pbtxt").read_text()


def test_what_is_there_is_not_replaced(served_folder: Path, tmp_path: Path) -> None:
    write_repository(served_folder, Repository(tmp_path, "reviews"))
    before = names(tmp_path)
    with pytest.raises(ArtifactError, match="a model of this name"):
        write_repository(served_folder, Repository(tmp_path, "reviews"), ragged=True)
    assert names(tmp_path) == before


def test_a_failure_leaves_nothing(served_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(shutil, "copy2", full)
    with pytest.raises(OSError, match="no space"):
        write_repository(served_folder, Repository(tmp_path / "models", "reviews"))
    assert not names(tmp_path)
    assert not any((tmp_path / "models").iterdir())


def test_recovery_needs_the_python_back_end(
    served_folder: Path, session: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = SimpleNamespace(
        inputs=session.inputs,
        outputs=session.outputs,
        adapters=session.adapters,
        manifest={**session.manifest, "recovery": {"output": "logits", "bound": 0.5, "initializer": "x"}},
        native=session.native,
    )
    monkeypatch.setattr(module, "open_session", lambda *_: fake)
    with pytest.raises(InputError, match="uncertain"):
        write_repository(served_folder, Repository(tmp_path, "reviews"))
    assert write_repository(served_folder, Repository(tmp_path, "reviews"), ragged=True).is_dir()


def test_providers_that_the_back_end_has_no_word_for_need_the_python_back_end(
    served_folder: Path, session: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "open_session", lambda *_: session)
    options = ServeOptions(provider="OpenVINOExecutionProvider")
    with pytest.raises(InputError, match="cannot be told"):
        write_repository(served_folder, Repository(tmp_path, "reviews"), options)
    assert not any(tmp_path.iterdir())
    written = write_repository(served_folder, Repository(tmp_path, "reviews"), options, ragged=True)
    assert "OpenVINOExecutionProvider" in (written / "config.pbtxt").read_text()


@pytest.mark.parametrize("name", ["", "a/b", "../x", ".hidden", "näme", "a b"])
def test_names_are_those_of_folders(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no name of a model"):
        Repository(tmp_path, name)


def test_the_command_adds_a_model(served_folder: Path, tmp_path: Path) -> None:
    arguments = ["export", "triton", str(served_folder), str(tmp_path / "models"), "--ragged", "--max-batch", "4"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    config = tmp_path / "models" / served_folder.name / "config.pbtxt"
    assert "max_batch_size: 4" in config.read_text()
    assert f"written: {config.parent}" in result.stdout
