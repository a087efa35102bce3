"""The model that a session with the native library is started on: its nodes in place of standard ones.

The file keeps the standard nodes, so that every runtime reads it.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from .activations import activate_natively
from .masked_attention import mask_natively
from .score_gates import gate_natively


@dataclass(frozen=True)
class NativeModel:
    """A model to start a session on, and what was replaced in it.

    Attributes:
        protobuf: the model, its weights where the file has them.
        attentions, gates, activations: how many of each the library runs.
    """

    protobuf: bytes
    attentions: int
    gates: int
    activations: int


def native_model(file: Path) -> NativeModel | None:
    """The model of `file` with every attention, gate and activation that the library can run.

    None where there is none of them, or without the package `onnx_ir`: then the file itself is the model to run.
    """
    if importlib.util.find_spec("onnx_ir") is None:
        return None
    import onnx_ir

    model = onnx_ir.load(file)
    counts = mask_natively(model), gate_natively(model), activate_natively(model)
    if not any(counts):
        return None
    return NativeModel(onnx_ir.to_proto(model).SerializeToString(), *counts)
