"""A model repository for NVIDIA's Triton Inference Server, written from an artifact folder.

    OUT/NAME/config.pbtxt                        onnxruntime back end: requests of one length share a batch
             1/model.onnx, model.onnx.data
             the native kernels, where they are used

    OUT/NAME/config.pbtxt                        ragged=True, python back end: lengths and budgets may differ
             1/model.py, artifact/…              needs gatefx[onnxruntime] in the server's Python

An engine of TensorRT becomes a model of the tensorrt back end (`triton_engine.py`).
The onnxruntime back end runs the graph alone: at the budget of the export, without recovery of uncertain examples.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ...errors import ArtifactError, InputError
from ..artifact import Artifact
from ..manifest import TENSORRT
from ..native.library import NativeStatus
from ..sessions.onnxruntime import MODEL_FILE, OnnxSession
from ..sessions.onnxruntime_start import PROVIDERS, full_name
from .options import ServeOptions
from .served_model import ServedModel, open_session, served_model
from .triton_config import ARTIFACT, config_text
from .triton_engine import checked_engine, fill_model

CONFIG_FILE, VERSION, MODEL_PY = "config.pbtxt", "1", "model.py"
_WEIGHTS = f"{MODEL_FILE}.data"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_MODEL = '''"""Written by gatefx: requests of several lengths and budgets in one batch."""

from gatefx.runtime.serving.triton_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


@dataclass(frozen=True)
class Repository:
    """Where a model goes.

    Attributes:
        path: of the repository, made if it is not there.
        name: of the model in it.
        mount: the repository's path on the server; None is its path here.
    """

    path: Path
    name: str
    mount: str | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise InputError(
                "This is no name of a model.", given=repr(self.name), expected="letters, digits, '_', '.' and '-'"
            )

    def seen(self, file: str) -> str:
        """The path of a file of the model on the server."""
        return f"{(self.mount or str(self.path.absolute())).rstrip('/')}/{self.name}/{file}"


def write_repository(
    folder: str | Path, repository: Repository, options: ServeOptions | None = None, *, ragged: bool = False
) -> Path:
    """Write the model of `folder` into a repository, whole or not at all: the model's own folder there.

    Args:
        folder: what `gatefx.export` wrote.
        options: replicas are instances; wait_ms is the longest delay in the queue.
        ragged: by the python back end, with padding, budgets and recovery; else by the onnxruntime back end.

    Raises:
        ArtifactError: a folder that does not verify, an engine that is not built, or a model of that name that is
            there already.
        InputError: a model that no batch can be made of, or with adapters to choose from; without `ragged`, one with
            recovery, or a provider that the onnxruntime back end does not have; an engine as `checked_engine`.
    """
    chosen = options or ServeOptions()
    place = str(Path(folder).absolute())
    if Artifact.open(place, verify=False).manifest.get("backend") == TENSORRT:
        engine = checked_engine(place, chosen, ragged=ragged)
        return _written(repository, lambda written: fill_model(written, engine, chosen, version=VERSION))
    session = open_session(place, chosen)
    model = served_model(place, session, chosen)
    _check_adapters(session)
    if not ragged:
        _check_graph_alone(model, session, chosen)

    def fill(written: Path) -> str:
        library = _filled(written, model, ragged=ragged, native=session.native)
        seen = repository.seen(library) if library else ""
        return config_text(model, chosen, name=repository.name, ragged=ragged, library=seen)

    return _written(repository, fill)


def _written(repository: Repository, fill: Callable[[Path], str]) -> Path:
    """The model's folder, which `fill` puts its files into and gives its configuration."""
    target = repository.path / repository.name
    _check_free(target)
    with tempfile.TemporaryDirectory(dir=_made(repository.path), prefix=".gatefx.writing.") as staging:
        written = Path(staging) / repository.name
        (written / VERSION).mkdir(parents=True)
        (written / CONFIG_FILE).write_text(fill(written), encoding="utf-8")
        _rename(written, target)
    return target


def _check_adapters(session: OnnxSession) -> None:
    if session.adapters:
        raise InputError(
            "Triton's models take one adapter, and this folder has more.",
            given=", ".join(session.adapters),
            expected="a folder that was exported without adapters=",
            remedy="export each adapter into a folder and a model of its own, or serve them by `gatefx serve`",
        )


def _check_graph_alone(model: ServedModel, session: OnnxSession, options: ServeOptions) -> None:
    """Refuse what the onnxruntime back end would leave out: recovery, or a provider that it has no word for."""
    if session.manifest.get("recovery") is not None:
        raise InputError(
            "The onnxruntime back end cannot run uncertain examples again, which this model asks for.",
            given=f"{model.folder}, with recovery",
            expected="ragged=True, or a model without recovery",
        )
    if full_name(options.provider) not in PROVIDERS.values():
        raise InputError(
            "The onnxruntime back end cannot be told to use this provider.",
            given=options.provider,
            expected=f"ragged=True, or one of {', '.join(PROVIDERS)}",
        )


def _check_free(target: Path) -> None:
    if os.path.lexists(target):
        raise ArtifactError(
            "The repository has a model of this name; nothing was written.",
            given=str(target),
            expected="a name that is not taken",
        )


def _rename(written: Path, target: Path) -> None:
    try:
        written.rename(target)
    except OSError as error:
        raise ArtifactError(
            "The finished model could not take its name.", given=str(target), expected=str(error)
        ) from error


def _filled(written: Path, model: ServedModel, *, ragged: bool, native: NativeStatus) -> str:
    """Copy the model's files; the name of the native library among them, empty without one."""
    if ragged:
        shutil.copytree(model.folder, written / VERSION / ARTIFACT)
        (written / VERSION / MODEL_PY).write_text(_MODEL, encoding="utf-8")
        return ""
    artifact = Artifact.open(model.folder, verify=False)
    for name in (MODEL_FILE, _WEIGHTS):
        if name in artifact.manifest["files"]:
            shutil.copy2(artifact.file(name), written / VERSION / name)
    if not native.active or native.library is None:
        return ""
    shutil.copy2(native.library, written / native.library.name)
    return native.library.name


def _made(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError("The repository cannot be made.", given=str(path), expected=str(error)) from error
    return path.absolute()
