"""Selections: the four nodes by which a hardened gate chooses tokens at a cut.

priority, counts = hard_token_gate_1(…)
indices, valid   = gatefx.select_tokens(priority, counts)               (B, K) int64, (B, K) bool
gate             = gatefx.scatter_tokens(to(valid), indices, valid, T, 0)     (B, T), 1 at kept tokens, else 0
"""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
from torch import fx

from ...runtime.ops import token_ops  # noqa: F401  # defines torch.ops.gatefx.select_tokens
from .token_rules import rearranges

SELECT = torch.ops.gatefx.select_tokens.default
GATHER = torch.ops.gatefx.gather_tokens.default
SCATTER = torch.ops.gatefx.scatter_tokens.default


@dataclass(frozen=True)
class Selection:
    """One cut of a hardened graph that runs on all tokens.

    Attributes:
        name: of the hard gate; indices, valid: (B, K); kept: `valid` as numbers (B, K).
        gate: (B, T); length: T, the node that holds it or the number.
    """

    name: str
    indices: fx.Node
    valid: fx.Node
    kept: fx.Node
    gate: fx.Node
    length: fx.Node | int


def find_selections(graph_module: fx.GraphModule) -> tuple[Selection, ...]:
    """Every selection whose gate is still as long as the tokens it chose from, in graph order."""
    found = [_selection(node) for node in graph_module.graph.find_nodes(op="call_function", target=SCATTER)]
    return tuple(selection for selection in found if selection is not None)


def chosen_by(node: fx.Node) -> fx.Node | None:
    """The `select_tokens` that a node is the indices or the flags of."""
    if node.target is not operator.getitem:
        return None
    source = node.all_input_nodes[0]
    return source if source.target is SELECT else None


def _selection(scatter: fx.Node) -> Selection | None:
    kept, indices, valid, length, fill = scatter.args
    nodes = (kept, indices, valid)
    if fill != 0 or not all(isinstance(node, fx.Node) for node in nodes):
        return None
    kept, indices, valid = (node for node in nodes if isinstance(node, fx.Node))
    select = chosen_by(indices)
    if select is None or select is not chosen_by(valid) or not isinstance(length, fx.Node | int):
        return None
    if kept is not valid and not (rearranges(kept) and kept.args[0] is valid):
        return None
    priority = select.all_input_nodes[0]
    source = priority.all_input_nodes[0] if priority.target is operator.getitem else priority
    return Selection(str(source.target), indices, valid, kept, scatter, length)
