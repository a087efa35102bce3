"""Artifacts in OpenVINO on the CPU: the same folder, and the same session over another engine.

OpenVINO takes no local functions, so each operator of gatefx is replaced by its ONNX body first; replaceable buffers
become inputs that the session feeds. It computes in float32 also where the processor is faster in fewer bits.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import ArtifactError, ProviderError, missing_package
from ..artifact import Artifact
from ..native.library import NativeStatus
from .onnxruntime import MODEL_FILE, OnnxSession
from .onnxruntime_start import checked_threads

if TYPE_CHECKING:
    import onnx

OPENVINO = "openvino"
_RUNS_ON = "OpenVINO CPU"


def open_in_openvino(
    artifact: Artifact, *, threads: int | None = None, native: bool | None = None, file: str = MODEL_FILE
) -> OnnxSession:
    """A session on `artifact`, run by OpenVINO; its provider is "OpenVINO CPU".

    Args:
        artifact: an opened artifact that holds one model.
        threads: of OpenVINO's pool; None leaves the choice to it.
        native: True is refused: OpenVINO cannot call gatefx's kernels.
        file: the model in the folder.

    Raises:
        MissingDependencyError: openvino or onnx is not installed.
        ProviderError: native kernels are asked for.
        ArtifactError: OpenVINO refuses the model.
        InputError: a number of threads below one.
    """
    used = NativeStatus(False, "OpenVINO runs the operators by their ONNX bodies")
    if native is True:
        raise ProviderError(
            "OpenVINO cannot call gatefx's native kernels.",
            given="native=True",
            expected="native=None or native=False",
            remedy="open the folder with provider='cpu', which is ONNX Runtime",
        )
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "ENABLE_MMAP": False}
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = checked_threads(threads)
    return OnnxSession(_Model.compiled(artifact, file, settings), artifact, _RUNS_ON, used)


@dataclass(frozen=True)
class _Place:
    """An input or output, described as ONNX Runtime describes its own."""

    name: str
    type: str
    shape: tuple[int | str | None, ...]

    @classmethod
    def of(cls, value: onnx.ValueInfoProto) -> _Place:
        from onnx import TensorProto

        tensor = value.type.tensor_type
        kind = TensorProto.DataType.Name(tensor.elem_type).lower()
        sizes = (dim.dim_param or (dim.dim_value if dim.HasField("dim_value") else None) for dim in tensor.shape.dim)
        return cls(value.name, f"tensor({kind})", tuple(sizes))


class _Model:
    """What `OnnxSession` asks of a runtime, answered by a compiled model of OpenVINO."""

    def __init__(self, compiled: Any, graph: onnx.GraphProto, defaults: Mapping[str, np.ndarray]) -> None:
        self._compiled = compiled
        self._defaults = dict(defaults)
        self._inputs = [_Place.of(value) for value in graph.input]
        self._outputs = [_Place.of(value) for value in graph.output]
        # One request holds one run's arrays.
        self._request, self._lock = compiled.create_infer_request(), Lock()

    @classmethod
    def compiled(cls, artifact: Artifact, file: str, settings: Mapping[str, Any]) -> _Model:
        """Read, flatten and compile one model of `artifact`."""
        engine = _openvino()
        import onnx

        path = artifact.file(file)
        try:
            model, defaults = _flat(path)
            with tempfile.TemporaryDirectory() as scratch:
                flat = Path(scratch) / file
                onnx.save_model(model, flat, save_as_external_data=True, location=f"{file}.data")
                compiled = engine.Core().compile_model(str(flat), "CPU", dict(settings))
        except Exception as error:
            # OpenVINO's errors have no common base but RuntimeError, and onnx adds its own.
            raise ArtifactError(
                f"OpenVINO {engine.__version__} does not load {file} of {artifact.path}.",
                given=str(error).strip(),
                expected="a model of operators that this version supports",
                remedy="open the folder with provider='cpu', which is ONNX Runtime",
            ) from error
        return cls(compiled, model.graph, defaults)

    def get_inputs(self) -> list[_Place]:
        """What every run needs."""
        return [place for place in self._inputs if place.name not in self._defaults]

    def get_outputs(self) -> list[_Place]:
        """What every run returns."""
        return self._outputs

    def get_overridable_initializers(self) -> list[_Place]:
        """What a run may replace."""
        return [place for place in self._inputs if place.name in self._defaults]

    def run(self, _names: None, fed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Every output, in order; as `onnxruntime.InferenceSession.run`."""
        with self._lock:
            results = self._request.infer({**self._defaults, **fed})
            return [np.array(results[port]) for port in self._compiled.outputs]


def _flat(path: Path) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """(the model without local functions and without values of replaceable buffers, those values by name)."""
    import onnx
    from onnx import external_data_helper, inliner, numpy_helper

    model = inliner.inline_local_functions(onnx.load(path, load_external_data=False))
    external_data_helper.load_external_data_for_model(model, str(path.parent))
    named = {value.name for value in model.graph.input}
    defaults = {w.name: numpy_helper.to_array(w).copy() for w in model.graph.initializer if w.name in named}
    kept = [weight for weight in model.graph.initializer if weight.name not in named]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return model, defaults


def _openvino() -> Any:
    feature = "Running an exported model in OpenVINO"
    try:
        import openvino
    except ImportError as error:
        raise missing_package("openvino", extra="openvino", feature=feature) from error
    return openvino
