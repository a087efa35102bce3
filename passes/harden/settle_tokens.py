"""Settle: token gates that keep every token leave the graph, as if they had never been inserted.

    h ─▶ mul(h, unsqueeze(G, -1)) ─▶ …     →   h ─▶ …
    where(mask, bias, min), add(mask, bias)    →   mask           (an attention without a mask has none again)
    add(scores, bias)                          →   scores
    mul(mask, G) in a pool, or before a gate   →   mask

Exact, bit for bit the graph before insertion: everything that a token gate is joined to comes first in the joining.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx

from ..contract import Pass
from ..gate.token_gate import InsertTokenGates
from ..gate.token_scores import token_gates
from ..report import Outcome

aten = torch.ops.aten
_MASK = 3  # argument of an attention in one operator


@dataclass(frozen=True)
class SettleTokenGates(Pass):
    """Take every training gate on tokens out."""

    def apply(self, graph_module: fx.GraphModule) -> Outcome:
        """Undo the insertion."""
        gates = [node for node, _ in token_gates(graph_module)]
        take_out(graph_module, gates)
        return Outcome(tuple(str(node.target) for node in gates))


def take_out(graph_module: fx.GraphModule, gates: Sequence[fx.Node]) -> None:
    """Undo what `InsertTokenGates` joined to gates, each (B, T), training or hard."""
    derived = set(gates)
    for node in list(graph_module.graph.nodes) if gates else ():
        if node in derived or not derived.intersection(node.all_input_nodes):
            continue
        if node.meta.get("origin") != InsertTokenGates.__name__:
            _drop_mask(node)
        elif node.args[0] in derived:
            derived.add(node)
        else:
            node.replace_all_uses_with(node.all_input_nodes[0])
    if gates:
        graph_module.graph.eliminate_dead_code(is_impure_node=lambda n: n.op in ("placeholder", "output"))
        graph_module.delete_all_unused_submodules()


def _drop_mask(node: fx.Node) -> None:
    """An attention whose whole mask was the gate's has none."""
    if node.target is aten.scaled_dot_product_attention.default and len(node.args) == _MASK + 1:
        node.args = node.args[:_MASK]
    elif len(node.args) > _MASK:
        node.update_arg(_MASK, None)
    else:
        node.update_kwarg("attn_mask", None)
