"""The last real token of every row, whose logits a prompt is read for: its place, wherever padding stands.

    argmax(mul(add(positions, 1), attention_mask), 1, keepdim)        (B, 1) int64

A gate on tokens never drops it (`passes/gate/token_scores.py` protects the ends of a prompt).
"""

from __future__ import annotations

import torch
from torch import fx

from ...runtime.ops import visible_ops  # noqa: F401  # defines torch.ops.gatefx.visible_keys
from ..graph.edit import emit

aten = torch.ops.aten
VISIBLE = torch.ops.gatefx.visible_keys.default


def emit_last_token(graph: fx.Graph, positions: fx.Node, mask: fx.Node, *, origin: str) -> fx.Node:
    """The place of each row's last real token, at the insertion point: positions, mask (B, T) → (B, 1)."""
    counted = emit(graph, aten.add.Tensor, (positions, 1), origin=origin, like=positions)
    real = emit(graph, aten.mul.Tensor, (counted, mask), origin=origin, like=positions)
    return emit(graph, aten.argmax.default, (real, 1, True), origin=origin, like=positions)


def is_decoder_graph(graph_module: fx.GraphModule) -> bool:
    """Whether later tokens see earlier ones alone, by explicit positions."""
    return bool(graph_module.graph.find_nodes(op="call_function", target=VISIBLE))


def answered_tokens(graph_module: fx.GraphModule, mask: torch.Tensor | None) -> torch.Tensor | None:
    """The tokens whose answers say how good a choice of tokens is, of the real ones (B, T).

    In a decoder the last alone: the answers of dropped tokens mean nothing, and a prompt is read for its last.
    """
    if mask is None or not is_decoder_graph(graph_module):
        return mask
    last = (mask * mask.long().cumsum(-1)).argmax(-1, keepdim=True)
    return torch.zeros_like(mask).scatter(-1, last, 1)


def is_last_token(node: fx.Node) -> bool:
    """Whether a node is such a place, or the slot that a cut made of it: how many kept tokens stand before it."""
    if node.target is aten.sum.dim_IntList and node.all_input_nodes[0].target is aten.lt.Tensor:
        place = node.all_input_nodes[0].args[1]
        return isinstance(place, fx.Node) and is_last_token(place)
    if node.target is not aten.argmax.default or node.args[1:] != (1, True):
        return False
    product = node.all_input_nodes[0]
    counted = product.all_input_nodes[0]
    return (product.target, counted.target) == (aten.mul.Tensor, aten.add.Tensor) and counted.args[1:] == (1,)
