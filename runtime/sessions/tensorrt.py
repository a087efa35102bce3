"""Artifacts in TensorRT: the engine that a folder's scripts built, on the GPU that they built it for.

Arrays are copied to the GPU and back by torch, which owns the memory; TensorRT only runs.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ...errors import ArtifactError, BudgetError, InputError, MissingDependencyError, ProviderError
from ..artifact import Artifact
from ..tensorrt.build_engine import ENGINE_FILE
from ..tensorrt.build_files import PYTHON_SCRIPT, SHELL_SCRIPT, read_profile
from .inputs import feed
from .protocol import TensorSpec


class TensorRTSession:
    """An artifact folder opened in TensorRT; see `protocol.Session`. Make one with `TensorRTSession.open`."""

    def __init__(self, engine: Any, artifact: Artifact, trt: Any) -> None:
        self._engine = engine
        self._context = engine.create_execution_context()
        # A context holds the shapes of one call.
        self._lock = threading.Lock()
        self._artifact = artifact
        self._profile = read_profile(artifact)
        names = [engine.get_tensor_name(place) for place in range(engine.num_io_tensors)]
        taken = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        # By output, the engine's name for it, where that is another.
        self._own_names: Mapping[str, str] = artifact.manifest.get("engine_outputs", {})
        specs = {name: self._spec(name, trt) for name in names}
        self._inputs = tuple(specs[name] for name in taken)
        self._outputs = tuple(specs[name] for name in names if name not in taken)

    @classmethod
    def open(cls, artifact: Artifact) -> TensorRTSession:
        """A session on `artifact`, whose engine is built.

        Raises:
            MissingDependencyError: TensorRT's Python package is not installed.
            ProviderError: no GPU, or a torch that does not see it.
            ArtifactError: the engine is not built, or not for this TensorRT and GPU.
        """
        trt = _tensorrt()
        if not torch.cuda.is_available():
            raise ProviderError(
                "A TensorRT engine runs on a GPU, and torch sees none.",
                given=f"torch {torch.__version__}",
                expected="an NVIDIA GPU, and a build of torch for CUDA",
                remedy='export with backend="onnxruntime" for this machine',
            )
        path = artifact.path / ENGINE_FILE
        if not path.is_file():
            raise ArtifactError(
                "The folder's engine is not built yet.",
                given=str(artifact.path),
                expected=ENGINE_FILE,
                remedy=f"run python {PYTHON_SCRIPT} in the folder (or its {SHELL_SCRIPT}, if it has one), on the "
                "machine that will run it",
            )
        runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        engine = runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise ArtifactError(
                f"TensorRT {trt.__version__} does not load the engine.",
                given=str(path),
                expected="an engine that this TensorRT built for this GPU",
                remedy=f"run python {PYTHON_SCRIPT} in the folder again, on this machine",
            )
        return cls(engine, artifact, trt)

    @property
    def provider(self) -> str:
        """The name of what runs the model."""
        return "TensorRT"

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What a call must pass."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What a call returns."""
        return self._outputs

    @property
    def manifest(self) -> Mapping[str, Any]:
        """The fields of the artifact's `gatefx.json`."""
        return self._artifact.manifest

    @property
    def budget(self) -> Any:
        """The budget of the export, which an engine has fixed: setting it raises BudgetError."""
        return self.manifest["budget"]

    @budget.setter
    def budget(self, value: float | Mapping[str, float]) -> None:
        raise BudgetError(
            "An engine's budget is fixed.",
            given=f"budget={value!r}",
            expected=f"the budget of the export, {self.budget!r}",
            remedy='set fast.budget and export again, or export with backend="onnxruntime"',
        )

    def __call__(self, **arrays: Any) -> dict[str, np.ndarray]:
        """Outputs by name; see `run`."""
        return self.run(arrays)

    def run(
        self, arrays: Mapping[str, Any], budget: float | Mapping[str, float] | None = None
    ) -> dict[str, np.ndarray]:
        """Outputs by name.

        Args:
            arrays: input name → numpy array, torch CPU tensor or nested list.
            budget: None, or that of the export.

        Raises:
            InputError: inputs that are missing, unknown, do not fit, or have sizes that the engine was not built for.
            BudgetError: another budget.
        """
        if budget is not None and budget != self.budget:
            self.budget = budget
        fed = feed(arrays, self._inputs)
        self._check_sizes(fed)
        with self._lock:
            return self._answers({name: torch.from_numpy(array).cuda() for name, array in fed.items()})

    def _check_sizes(self, fed: Mapping[str, np.ndarray]) -> None:
        for name, array in fed.items():
            shapes = self._profile.get(name)
            if shapes is None:
                continue
            bounds = zip(shapes["min"], array.shape, shapes["max"], strict=True)
            if not all(least <= size <= most for least, size, most in bounds):
                raise InputError(
                    f"The engine was not built for this size of {name!r}.",
                    given=str(array.shape),
                    expected=f"from {tuple(shapes['min'])} to {tuple(shapes['max'])}",
                    remedy="pad or split the batch, or export again with sizes={…}",
                )

    def _answers(self, fed: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
        context, stream = self._context, torch.cuda.current_stream()
        for name, tensor in fed.items():
            context.set_input_shape(name, tuple(tensor.shape))
            context.set_tensor_address(name, tensor.data_ptr())
        results = {}
        for spec in self._outputs:
            kind = torch.from_numpy(np.empty(0, spec.dtype)).dtype
            own = self._own_names.get(spec.name, spec.name)
            results[spec.name] = torch.empty(tuple(context.get_tensor_shape(own)), dtype=kind, device="cuda")
            context.set_tensor_address(own, results[spec.name].data_ptr())
        if not context.execute_async_v3(stream.cuda_stream):
            raise InputError(
                "TensorRT could not run the engine on these inputs.",
                given=", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in fed.items()),
                expected="; ".join(map(str, self._inputs)),
            )
        stream.synchronize()
        return {name: tensor.cpu().numpy() for name, tensor in results.items()}

    def _spec(self, own: str, trt: Any) -> TensorSpec:
        """An input or output that the engine names `own`; names are those of the manifest, where it has them."""
        name = next((name for name, other in self._own_names.items() if other == own), own)
        sizes: Sequence[int] = tuple(self._engine.get_tensor_shape(own))
        named = self.manifest["axes"].get(name, [None] * len(sizes))
        shape = tuple(axis if size < 0 else size for size, axis in zip(sizes, named, strict=True))
        return TensorSpec(name, np.dtype(trt.nptype(self._engine.get_tensor_dtype(own))), shape)


def _tensorrt() -> Any:
    try:
        import tensorrt
    except ImportError as error:
        raise MissingDependencyError(
            "The folder was written for TensorRT, whose Python package 'tensorrt' cannot be imported here.",
            given=str(error),
            expected="the package tensorrt, with NVIDIA's libraries (libnvinfer)",
            remedy='pip install tensorrt on a machine with a GPU, or export with backend="onnxruntime"',
        ) from error
    return tensorrt
