"""Attention under a mask of flags by the native library, in the model that a session of ONNX Runtime is started on.

    q, k, v (B, T, H·D), visible (B, 1, T, S) ─▶ Attention ─▶ (B, T, H·D)
        →   the same ─▶ gatefx::MaskedAttention ─▶ (B, T, H·D)

The file keeps the standard node, so that every runtime reads it; only a session that has the library sees the other.
ONNX Runtime's own kernel writes the scores of all heads, B·H·T·S numbers, before it reads them; the native one keeps a
few of them near and skips blocks of keys that no query of a block sees. Both mean the same: softmax over the visible
keys, zeros where a query sees none.

Declines attentions of rank four (of decoders with rotary positions), with a cache, without a mask or with one of
numbers, of heads whose width is not known or above 256, and what else the standard operator can do (causal by itself,
softcap, scores as an answer).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .native_nodes import replace_by_native

if TYPE_CHECKING:
    import onnx_ir

MASKED_ATTENTION = "MaskedAttention"

_INPUTS, _ROWS_RANK, _WIDEST = 4, 3, 256
"""Inputs, axes of a query, and features of a head, which the library keeps near."""
_NEUTRAL = {"is_causal": 0, "qk_matmul_output_mode": 0, "softcap": 0.0}
"""What says nothing where it has this value."""


def mask_natively(model: onnx_ir.Model) -> int:
    """Replace in place every attention that the library can run; how many."""
    found = [node for node in model.graph if node.op_type == "Attention" and not node.domain]
    return sum(_replaced(model, node) for node in found)


def _replaced(model: onnx_ir.Model, node: onnx_ir.Node) -> bool:
    import onnx_ir

    widths = _head_widths(node) if _plain(node) else None
    if widths is None or max(widths) > _WIDEST:
        return False
    said = node.attributes.get("scale")
    scale = float(widths[0] ** -0.5) if said is None else float(said.as_float())
    heads = [node.attributes[key] for key in ("q_num_heads", "kv_num_heads")]
    replace_by_native(
        model,
        [node],
        MASKED_ATTENTION,
        node.inputs[:_INPUTS],
        answers=node.outputs,
        attributes=[*heads, onnx_ir.AttrFloat32("scale", scale)],
    )
    return True


def _plain(node: onnx_ir.Node) -> bool:
    """Whether the node is softmax attention on rows under a mask of flags, and nothing else."""
    import onnx_ir

    if len(node.outputs) != 1 or [value is not None for value in node.inputs] != [True] * _INPUTS:
        return False
    query, mask = node.inputs[0], node.inputs[_INPUTS - 1]
    if query is None or query.shape is None or len(query.shape) != _ROWS_RANK:
        return False
    if mask is None or mask.dtype != onnx_ir.DataType.BOOL:
        return False
    others = set(node.attributes) - {"q_num_heads", "kv_num_heads", "scale"}
    return all(name in _NEUTRAL and node.attributes[name].value == _NEUTRAL[name] for name in others)


def _head_widths(node: onnx_ir.Node) -> tuple[int, int] | None:
    """(features of a query's head, of a value's), if the graph says them."""
    widths = []
    for place, count in ((0, "q_num_heads"), (2, "kv_num_heads")):
        rows = node.inputs[place]
        width = None if rows is None or rows.shape is None else rows.shape[len(rows.shape) - 1]
        if not isinstance(width, int):
            return None
        widths.append(width // node.attributes[count].as_int())
    return widths[0], widths[1]
