"""GELU by the native layers before it, in the model that a session of ONNX Runtime is started on.

    x ─▶ gatefx::GatedLinear(W, b, A, B, …) ─▶ Gelu ─▶ y
        →   x ─▶ gatefx::GatedLinearGelu(W, b, A, B, …) ─▶ y            TokenGatedLinear and RoutedLinear alike

A layer's task applies it to the rows that it has just written, while they are near: one pass less over the widest
answers of a model. Both mean the same up to rounding. The file keeps the standard node, so that every runtime reads it.

Declines the approximation by tanh, and answers that something else reads too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..ops.domain import DOMAIN
from .native_nodes import replace_by_native

if TYPE_CHECKING:
    import onnx_ir

LAYERS = ("GatedLinear", "TokenGatedLinear", "RoutedLinear")
SUFFIX = "Gelu"
"""The library's operators with GELU have this behind the layer's name."""


def activate_natively(model: onnx_ir.Model) -> int:
    """Replace in place every GELU that a native layer can apply; how many."""
    found = [(layer, node) for node in model.graph if (layer := _layer_before(node)) is not None]
    for layer, gelu in found:
        operator, attributes = layer.op_type + SUFFIX, layer.attributes.values()
        replace_by_native(model, [layer, gelu], operator, layer.inputs, answers=gelu.outputs, attributes=attributes)
    return len(found)


def _layer_before(gelu: onnx_ir.Node) -> onnx_ir.Node | None:
    """The native layer whose answers nothing else reads."""
    if gelu.op_type != "Gelu" or gelu.domain or _by_tanh(gelu):
        return None
    answer = gelu.inputs[0]
    layer = None if answer is None else answer.producer()
    if answer is None or layer is None or answer.is_graph_output() or len(answer.uses()) != 1:
        return None
    return layer if layer.domain == DOMAIN and layer.op_type in LAYERS else None


def _by_tanh(gelu: onnx_ir.Node) -> bool:
    said = gelu.attributes.get("approximate")
    return said is not None and said.as_string() != "none"
