"""The last real token of every row, whose logits a prompt is read for: its place, wherever padding stands.

    argmax(mul(add(positions, 1), attention_mask), 1, keepdim)        (B, 1) int64

A gate on tokens never drops it (`passes/gate/token_scores.py` protects the ends of a prompt).
"""

from __future__ import annotations

import torch
from torch import fx

from ..graph.edit import emit

aten = torch.ops.aten


def emit_last_token(graph: fx.Graph, positions: fx.Node, mask: fx.Node, *, origin: str) -> fx.Node:
    """The place of each row's last real token, at the insertion point: positions, mask (B, T) → (B, 1)."""
    counted = emit(graph, aten.add.Tensor, (positions, 1), origin=origin, like=positions)
    real = emit(graph, aten.mul.Tensor, (counted, mask), origin=origin, like=positions)
    return emit(graph, aten.argmax.default, (real, 1, True), origin=origin, like=positions)


def is_last_token(node: fx.Node) -> bool:
    """Whether a node is such a place."""
    if node.target is not aten.argmax.default or node.args[1:] != (1, True):
        return False
    product = node.all_input_nodes[0]
    counted = product.all_input_nodes[0]
    return (product.target, counted.target) == (aten.mul.Tensor, aten.add.Tensor) and counted.args[1:] == (1,)
