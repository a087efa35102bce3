"""The model that a session with the native library is started on: its nodes in place of standard ones.

The file keeps the standard nodes, so that every runtime reads it.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from .activations import activate_natively
from .library import Replaced
from .masked_attention import mask_natively
from .score_gates import gate_natively
from .site_groups import group_sites


@dataclass(frozen=True)
class NativeModel:
    """A model to start a session on, and what was replaced in it.

    Attributes:
        protobuf: the model, its weights where the file has them.
        replaced: how many of each kind.
    """

    protobuf: bytes
    replaced: Replaced


def native_model(file: Path) -> NativeModel | None:
    """The model of `file` with all that the library can run in its place.

    None where there is nothing, or without the package `onnx_ir`: then the file itself is the model to run.
    """
    if importlib.util.find_spec("onnx_ir") is None:
        return None
    import onnx_ir

    model = onnx_ir.load(file)
    # GELU first: a site that has one is an operator of its own, which joins no group.
    replaced = Replaced(
        attentions=mask_natively(model),
        gates=gate_natively(model),
        activations=activate_natively(model),
        groups=group_sites(model),
    )
    return None if replaced == Replaced() else NativeModel(onnx_ir.to_proto(model).SerializeToString(), replaced)
