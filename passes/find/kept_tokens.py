"""What can run on the kept tokens of one cut: which values, along which of their axes, and what they read gathered.

    gate (B, T) = scatter_tokens(to(valid), indices, valid, T, 0)        the cut: 1 at kept tokens, 0 elsewhere

Every value computed from the gate gets its *token axes*, along which the compacted graph holds kept tokens only:

    compacted value  =  masked value, gathered at `indices` along each of its token axes,

at all kept tokens. Every operator that is followed keeps this equation:

    by place      pointwise, layouts, linear layers, norms. An operand that counts tokens where the result does without
                  being computed from the gate (the state at the cut, masks, positions, rotary tables) is *wanted*
                  gathered along that axis
    sums          attention, products of matrices, sums over tokens: only where dropped tokens weigh nothing, which
                  `kept_weights.py` follows
    reads         position 0, 1, … or -1, …, which a gate always keeps: the same slot among the kept tokens; the last
                  real token of a decoder's prompt likewise, at the slot that it has there
    selections    a later cut's choice among what is left

Everything else is a miss that names the node. Lengths are none: what is built from T stays built from T.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import fx, nn

from ...models.modulation import HardModulation, Modulation, SoftModulation
from ..graph.edit import module_path
from .adapters import Miss
from .attention import SOFTMAX, fused_mask, is_fused
from .kept_operands import Impossible, Operands, Want
from .kept_weights import KeptWeights
from .last_token import is_last_token
from .selections import GATHER, SCATTER, SELECT, Selection, chosen_by
from .token_rules import NOWHERE, Axes, is_pointwise, rank_of, reduced_axes, rule_of

aten = torch.ops.aten
_PRODUCTS = (aten.matmul.default, aten.bmm.default)
_LENGTHS = (aten.sym_size.int, aten.new_ones.default, aten.new_zeros.default, aten.new_full.default)
_LIKE = (aten.zeros_like.default, aten.ones_like.default, aten.full_like.default, aten.type_as.default)
_SHAPED_AS = (aten.reshape_as.default, aten.view_as.default)
_ALIGNED = (aten.cat.default, aten.gather.default)
_TOKEN_WISE = (Modulation, HardModulation, SoftModulation, nn.Dropout)
#: Operands of gatefx's operators that hold one token a row, by position; their axes count from the left.
_BY_ROW = {
    "gatefx.gated_lora.default": (0, 1),
    "gatefx.token_gated_lora.default": (0, 1),
    "gatefx.routed_linear.default": (0, 4),
}
_Rule: TypeAlias = Callable[[fx.Node, list[fx.Node]], Axes]
_TOKENS: Axes = frozenset({1})
_CAUSAL = 5  # argument of fused attention
_OPEN = "dropped tokens are not shut out of it"


@dataclass(frozen=True)
class KeptTokens:
    """The compactable part of a graph.

    Attributes:
        axes: value → its token axes, for every value computed from the gate that has some.
        wants: user → operand → how it must be read.
        reads: `gather_tokens` of the last real token, which reads slots instead of positions.
        misses: what cannot run on the kept tokens alone.
    """

    axes: dict[fx.Node, Axes] = field(default_factory=dict)
    wants: dict[fx.Node, dict[fx.Node, Want]] = field(default_factory=dict)
    reads: list[fx.Node] = field(default_factory=list)
    misses: list[Miss] = field(default_factory=list)


def follow_kept(graph_module: fx.GraphModule, selection: Selection) -> KeptTokens:
    """Follow what is computed from a selection's gate, to the outputs."""
    return _Walk(graph_module, selection).run()


class _Walk:
    """One pass over the graph in order. A rule answers with the token axes of the result."""

    def __init__(self, graph_module: fx.GraphModule, selection: Selection) -> None:
        self.graph_module = graph_module
        self.gate = selection.gate
        self.operands = Operands(selection.gate)
        self.found = KeptTokens(self.operands.axes, self.operands.wants)
        self.axes = self.operands.axes
        self.weights = KeptWeights(selection.gate)
        self.later: set[fx.Node] = set()  # selections among what is left

    def run(self) -> KeptTokens:
        """Visit every node that reads a value with token axes."""
        for node in self.graph_module.graph.nodes:
            if node is self.gate or node.target in _LENGTHS or not self._carriers(node):
                continue
            try:
                answer = self._visit(node, self._carriers(node))
            except Impossible as reason:
                path = module_path(node)
                self.found.misses.append(Miss(f"{path} ({node.name})" if path else node.name, str(reason)))
                continue
            if answer:
                self.axes[node] = answer
                self.weights.follow(node)
        return self.found

    def _carriers(self, node: fx.Node) -> list[fx.Node]:
        chosen = [source for source in node.all_input_nodes if chosen_by(source) in self.later]
        return [source for source in node.all_input_nodes if source in self.axes] or (
            chosen if node.target is SCATTER else []
        )

    def _visit(self, node: fx.Node, carriers: list[fx.Node]) -> Axes:
        if node.op == "output":
            for value in carriers:
                self.operands.check_answer(value)
            return NOWHERE
        if any(self.operands.keeps_examples(node, source) for source in carriers):
            self.operands.by_example.add(node)
        if is_fused(self.graph_module, node):
            return self._attend(node)
        if node.op == "call_module":
            return self._call(node, carriers)
        return self._rule(node)(node, carriers)

    def _rule(self, node: fx.Node) -> _Rule:
        special: dict[object, _Rule] = {
            **dict.fromkeys(_PRODUCTS, self._multiply),
            **dict.fromkeys(SOFTMAX, self._weigh),
            **dict.fromkeys((SELECT, SCATTER), self._choose),
            **dict.fromkeys(_BY_ROW, self._update),
            **dict.fromkeys(_LIKE, self._like),
            operator.getitem: self._part,
            GATHER: self._gather,
        }
        return special.get(node.target, special.get(str(node.target), self._apply))

    def _like(self, node: fx.Node, carriers: list[fx.Node]) -> Axes:  # noqa: ARG002  # a rule's signature
        """A constant of a value's shape, or a value of another's type."""
        return self.axes.get(node.all_input_nodes[0], NOWHERE)

    def _apply(self, node: fx.Node, carriers: list[fx.Node]) -> Axes:
        """Operators that work place by place."""
        rule = rule_of(node)
        if rule is None:
            raise Impossible(f"{node.target} is not known to leave tokens apart")
        found = NOWHERE
        for source in carriers:
            axes = self._summed(node, source) if node.target is aten.sum.dim_IntList else self.axes[source]
            answer = rule(node, source, axes) if axes else NOWHERE
            if isinstance(answer, str):
                raise Impossible(answer)
            found |= answer
        if is_pointwise(node) or node.target in _ALIGNED:
            for source in node.all_input_nodes:
                self.operands.want(node, source, found - self._looked_up(node, source), rank_of(node))
        elif node.target in _SHAPED_AS:
            self.operands.want(node, node.all_input_nodes[-1], found, rank_of(node))
        elif node.target is aten.stack.default and len(carriers) != len(node.all_input_nodes):
            raise Impossible("it stacks tokens on what are none")
        return found

    def _looked_up(self, node: fx.Node, source: fx.Node) -> Axes:
        """The axis along which `gather` looks numbers up counts no tokens of what it looks them up in."""
        if node.target is not aten.gather.default or source is not node.args[0]:
            return NOWHERE
        return frozenset({int(node.args[1]) % rank_of(node)})  # type: ignore[arg-type]  # schema: int

    def _summed(self, node: fx.Node, source: fx.Node) -> Axes:
        summed = reduced_axes(node, source) & self.axes[source]
        if not all(self.weights.is_zero(source, axis) for axis in summed):
            raise Impossible(_OPEN)
        return self.axes[source] - summed

    def _weigh(self, node: fx.Node, carriers: list[fx.Node]) -> Axes:
        scores = carriers[0]
        axis = int(node.args[1]) % rank_of(node)  # type: ignore[arg-type]  # schema: int
        if axis in self.axes[scores] and not self.weights.is_low(scores, axis):
            raise Impossible(_OPEN)
        return self.axes[scores]

    def _attend(self, node: fx.Node) -> Axes:
        query, keys, values = (source for source in node.args[:3] if isinstance(source, fx.Node))
        mask, rank = fused_mask(node), rank_of(query)
        if node.kwargs.get("is_causal") or (len(node.args) > _CAUSAL and node.args[_CAUSAL]):
            raise Impossible("attention that is causal by a flag counts the tokens that are left")
        row = frozenset({rank - 2})
        if any(self.axes.get(source, row) != row for source in (query, keys, values)):
            raise Impossible("its states do not hold one token a row")
        visible = self.operands.aligned(mask, rank) if mask is not None else NOWHERE
        attended = keys in self.axes or values in self.axes or rank - 1 in visible
        asking = query in self.axes or rank - 2 in visible
        if attended and (mask is None or not self.weights.is_low(mask, -1)):
            raise Impossible(_OPEN)
        for source, counts in ((query, asking), (keys, attended), (values, attended)):
            self.operands.want(node, source, row if counts else NOWHERE, rank)
        if mask is not None:
            sides = {axis for axis, counts in ((rank - 2, asking), (rank - 1, attended)) if counts}
            self.operands.want(node, mask, frozenset(sides), rank)
        return row if asking else NOWHERE

    def _multiply(self, node: fx.Node, carriers: list[fx.Node]) -> Axes:  # noqa: ARG002  # a rule's signature
        left, right = (source for source in node.args[:2] if isinstance(source, fx.Node))
        rank = rank_of(node)
        if left is right or min(rank_of(left), rank_of(right)) < 2:  # noqa: PLR2004  # matrices
            raise Impossible("it is no product of two matrices")
        of_left, of_right = self.operands.aligned(left, rank), self.operands.aligned(right, rank)
        summed = rank - 1 in of_left or rank - 2 in of_right
        if summed and not (self.weights.is_zero(left, -1) or self.weights.is_zero(right, -2)):
            raise Impossible(_OPEN)
        beside = (of_left | of_right) - {rank - 1, rank - 2}
        self.operands.want(node, left, beside | (of_left & {rank - 2}) | ({rank - 1} if summed else NOWHERE), rank)
        self.operands.want(node, right, beside | (of_right & {rank - 1}) | ({rank - 2} if summed else NOWHERE), rank)
        return beside | (of_left & {rank - 2}) | (of_right & {rank - 1})

    def _call(self, node: fx.Node, carriers: list[fx.Node]) -> Axes:
        """Gates that answer token by token, and the choice of a later cut."""
        module = self.graph_module.get_submodule(str(node.target))
        chooses = any(SELECT in (reader.target for reader in user.users) for user in node.users)
        if isinstance(module, nn.Dropout):
            return self.axes[carriers[0]]
        if not chooses and not isinstance(module, _TOKEN_WISE):
            raise Impossible(f"{type(module).__name__} is not known to leave tokens apart")
        self.operands.by_example.add(node)
        return self._by_row(node, [source for source in node.all_input_nodes if rank_of(source) > 1], carriers)

    def _by_row(self, node: fx.Node, rows: list[fx.Node], carriers: list[fx.Node]) -> Axes:
        """Operators and modules whose operands `rows` are (B, T) or (B, T, d), as is the result."""
        if any(source not in rows or self.axes[source] != _TOKENS for source in carriers):
            raise Impossible("its operands do not hold one token a row")
        for source in rows:
            self.operands.want(node, source, _TOKENS, rank_of(source))
        return _TOKENS

    def _part(self, node: fx.Node, carriers: list[fx.Node]) -> Axes:
        axes = self.axes[carriers[0]]
        return axes if rank_of(node) > max(axes) else NOWHERE

    def _update(self, node: fx.Node, carriers: list[fx.Node]) -> Axes:
        rows = [node.args[position] for position in _BY_ROW[str(node.target)]]
        return self._by_row(node, [row for row in rows if isinstance(row, fx.Node)], carriers)

    def _choose(self, node: fx.Node, carriers: list[fx.Node]) -> Axes:
        """A later cut's selection among what is left and its gate; an earlier cut's answer."""
        if node.target is SELECT:
            self.later.add(node)
            return NOWHERE
        if carriers[0] not in self.axes:
            self.operands.by_example.add(node)
            return _TOKENS
        self._by_row(node, [source for source in node.args[:3] if isinstance(source, fx.Node)], carriers)
        return NOWHERE

    def _gather(self, node: fx.Node, carriers: list[fx.Node]) -> Axes:
        """What an earlier cut gathered along another axis, and the last real token."""
        if isinstance(node.args[1], fx.Node) and is_last_token(node.args[1]) and self.axes[carriers[0]] == _TOKENS:
            self.found.reads.append(node)
            return NOWHERE
        if node.args[2] in self.axes[carriers[0]] or carriers[0] is not node.args[0]:
            raise Impossible("an earlier cut chose among these tokens")
        return self.axes[carriers[0]]
