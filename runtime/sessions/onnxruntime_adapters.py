"""Adapters of ONNX Runtime: files of a model's inputs, of which a run takes one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ArtifactError, InputError
from ..artifact import Artifact
from .onnxruntime_start import onnxruntime_module

SUFFIX = ".onnx_adapter"
FIELD = "adapters"
"""Of an artifact's manifest: adapter's name → file."""

_VERSION = 1


def write_adapter(path: Path, inputs: Mapping[str, np.ndarray]) -> None:
    """Write the inputs that an adapter is, by name.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
    """
    runtime = onnxruntime_module()
    adapter = runtime.AdapterFormat()
    adapter.set_adapter_version(_VERSION)
    adapter.set_model_version(_VERSION)
    adapter.set_parameters(
        {name: runtime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value)) for name, value in inputs.items()}
    )
    adapter.export_adapter(str(path))


class Adapters:
    """The adapters of an artifact, by name."""

    def __init__(self, loaded: Mapping[str, Any]) -> None:
        self._loaded = dict(loaded)

    @classmethod
    def of(cls, artifact: Artifact) -> Adapters:
        """Those that the artifact names; none where it names none.

        Raises:
            ArtifactError: a file that ONNX Runtime does not read.
        """
        files = artifact.manifest.get(FIELD) or {}
        if not isinstance(files, Mapping):
            raise ArtifactError("The artifact's adapters cannot be used.", given=str(files), expected="name → file")
        return cls({str(name): _loaded(artifact.file(str(file))) for name, file in files.items()})

    @property
    def names(self) -> tuple[str, ...]:
        """What `options` takes."""
        return tuple(self._loaded)

    def check(self, name: str) -> None:
        """Refuse a name that is none of these.

        Raises:
            InputError: as said.
        """
        if name not in self._loaded:
            raise InputError(
                "The model has no such adapter.",
                given=repr(name),
                expected=", ".join(self._loaded) or "an artifact with adapters, opened in ONNX Runtime",
                remedy="None is the model's own",
            )

    def options(self, name: str | None) -> Any:
        """Options of a run with an adapter; None, the model's own, needs none.

        Raises:
            InputError: no such adapter.
        """
        if name is None:
            return None
        self.check(name)
        options = onnxruntime_module().RunOptions()
        options.add_active_adapter(self._loaded[name])
        return options


def _loaded(path: Path) -> Any:
    adapter = onnxruntime_module().LoraAdapter()
    try:
        adapter.Load(str(path))
    except Exception as error:
        # ONNX Runtime's errors have no common base but Exception.
        raise ArtifactError(
            "ONNX Runtime does not read the adapter.", given=f"{path}: {error}", expected=f"a {SUFFIX} file"
        ) from error
    return adapter
