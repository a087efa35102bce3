"""Where dropped tokens weigh nothing: along which axes a value is 0 there, and along which a score is lowest.

    gate                                        0 at dropped tokens
    masked_fill(…, eq(gate, 0), min / 2)        lowest there, and stays so when a mask or scores are added
    softmax over such scores                    0 there again: exp underflows
    anything · 0, layouts, casts                0

What is known only for some masks or inputs is not recorded.
"""

from __future__ import annotations

import torch
from torch import fx

from ..graph.edit import tensor_value
from .attention import SOFTMAX
from .selections import GATHER
from .token_rules import NOWHERE, Axes, keeps_zeros, rank_of, rearranges, rule_of

aten = torch.ops.aten
_FILLED = (aten.masked_fill.Scalar, aten.where.ScalarOther)
_FILL = 2  # argument of both
_SUMS = (aten.add.Tensor,)


class KeptWeights:
    """Grows node by node, in graph order."""

    def __init__(self, gate: fx.Node) -> None:
        self.zero: dict[fx.Node, Axes] = {gate: frozenset({1})}
        self.low: dict[fx.Node, Axes] = {}

    def is_zero(self, node: fx.Node, axis: int) -> bool:
        """Whether the value is 0 at dropped tokens of an axis."""
        return axis % rank_of(node) in self.zero.get(node, NOWHERE)

    def is_low(self, node: fx.Node, axis: int) -> bool:
        """Whether the scores at dropped tokens of an axis are the lowest of all."""
        return axis % rank_of(node) in self.low.get(node, NOWHERE)

    def follow(self, node: fx.Node) -> None:
        """Say what is known of a node's value."""
        for source in node.all_input_nodes:
            if keeps_zeros(node, source):
                self._add(self.zero, node, source, self.zero.get(source, NOWHERE))
            if self._keeps_low(node, source):
                self._add(self.low, node, source, self.low.get(source, NOWHERE))
        if node.target is GATHER:
            for known in (self.zero, self.low):
                known[node] = known.get(node.all_input_nodes[0], NOWHERE)
        if node.target in SOFTMAX and self.is_low(node.all_input_nodes[0], _axis(node)):
            self.zero[node] = frozenset({_axis(node)})
        gate = _shuts(node)
        if gate is not None:
            self._add(self.low, node, gate, self.zero.get(gate, NOWHERE))

    def _keeps_low(self, node: fx.Node, source: fx.Node) -> bool:
        if node.target in _FILLED:
            return _fills_with_lowest(node) and tensor_value(source).is_floating_point()
        return node.target in _SUMS or rearranges(node)

    def _add(self, known: dict[fx.Node, Axes], node: fx.Node, source: fx.Node, axes: Axes) -> None:
        rule = rule_of(node)
        moved = rule(node, source, axes) if rule is not None and axes else NOWHERE
        if moved and not isinstance(moved, str):
            known[node] = known.get(node, NOWHERE) | moved


def _shuts(node: fx.Node) -> fx.Node | None:
    """What is compared with 0 to say where a node holds the lowest number."""
    if node.target is not aten.masked_fill.Scalar or not _fills_with_lowest(node):
        return None
    equal = node.all_input_nodes[-1]
    return equal.all_input_nodes[0] if equal.target is aten.eq.Scalar and equal.args[1] == 0 else None


def _fills_with_lowest(node: fx.Node) -> bool:
    value = node.args[_FILL]
    return isinstance(value, int | float) and value <= torch.finfo(tensor_value(node).dtype).min / 2


def _axis(node: fx.Node) -> int:
    return int(node.args[1]) % rank_of(node)  # type: ignore[arg-type]  # the operators' schemas say int
