"""torch-tensorrt on a machine without a GPU: it asks for one to be imported, and to load what it has built.

What is said here for a GPU is only asked for, never used: graphs are lowered, converted and built by TensorRT for RTX,
which needs none. Engines stay bytes. Meant for the package torch-tensorrt-rtx without its compiled libraries, which are
linked against torch for CUDA.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch


class BuiltEngine:
    """An engine that was built and is not loaded."""

    def __init__(self, serialized: Any) -> None:
        self._serialized = bytes(serialized)

    def serialize(self) -> bytes:
        return self._serialized


class Runtime:
    """Hands an engine back instead of loading it."""

    def __init__(self, logger: object) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, serialized: Any) -> BuiltEngine:
        return BuiltEngine(serialized)


@pytest.fixture(scope="module")
def torch_tensorrt_without_gpu() -> Iterator[None]:
    """For a while torch-tensorrt can be imported, compile and build."""
    if torch.cuda.is_available():
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))
        patch.setattr(torch.cuda, "current_device", lambda: 0)
        patch.setattr(torch.cuda, "mem_get_info", lambda *_: (1, 1))
        patch.setattr(torch._C, "_CudaDeviceProperties", object, raising=False)
        torch_tensorrt = importlib.import_module("torch_tensorrt")
        interpreter = importlib.import_module("torch_tensorrt.dynamo.conversion._TRTInterpreter")
        patch.setattr(torch_tensorrt.Device, "to", lambda *_: torch.device("cpu"))
        tensorrt = interpreter.trt
        names = {name: getattr(tensorrt, name) for name in dir(tensorrt)}
        patch.setattr(interpreter, "trt", SimpleNamespace(**names | {"Runtime": Runtime}))
        module = torch_tensorrt.dynamo.runtime.TorchTensorRTModule
        patch.setattr(module, "setup_engine", lambda _: None)
        patch.setattr(module, "set_output_tensors_as_unowned", lambda *_: None)
        yield
