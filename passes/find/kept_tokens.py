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
    reads         position 0, 1, … or -1, …, which a gate always keeps: the same slot among the kept tokens
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
from ..graph.edit import module_path, shape_of
from .adapters import Miss
from .attention import SOFTMAX, fused_mask, is_fused
from .kept_weights import KeptWeights
from .selections import GATHER, SCATTER, SELECT, Selection, chosen_by
from .token_rules import NOWHERE, Axes, is_pointwise, is_view, rank_of, reduced_axes, rule_of, size_key

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
class Want:
    """How a user must read an operand.

    Attributes:
        axes: to gather along, none of them 0, counted when ones are put in front until there are `rank` axes.
        rank: number of axes; copies: c, where the user has c rows an example on axis 0.
    """

    axes: Axes
    rank: int
    copies: int


@dataclass(frozen=True)
class KeptTokens:
    """The compactable part of a graph.

    Attributes:
        axes: value → its token axes, for every value computed from the gate that has some.
        wants: user → operand → how it must be read.
        misses: what cannot run on the kept tokens alone.
    """

    axes: dict[fx.Node, Axes] = field(default_factory=dict)
    wants: dict[fx.Node, dict[fx.Node, Want]] = field(default_factory=dict)
    misses: list[Miss] = field(default_factory=list)


def follow_kept(graph_module: fx.GraphModule, selection: Selection) -> KeptTokens:
    """Follow what is computed from a selection's gate, to the outputs."""
    return _Walk(graph_module, selection).run()


class _Impossible(Exception):  # noqa: N818  # a way out of a rule, caught here
    """Why a node cannot run on the kept tokens."""


class _Walk:
    """One pass over the graph in order. A rule answers with the token axes of the result."""

    def __init__(self, graph_module: fx.GraphModule, selection: Selection) -> None:
        self.graph_module = graph_module
        self.gate = selection.gate
        self.batch, self.length = (size_key(size) for size in shape_of(selection.gate))
        self.found = KeptTokens({selection.gate: _TOKENS})
        self.axes = self.found.axes
        self.weights = KeptWeights(selection.gate)
        self.by_example = {selection.gate}  # values whose axis 0 counts examples, or c rows of each
        self.later: set[fx.Node] = set()  # selections among what is left

    def run(self) -> KeptTokens:
        """Visit every node that reads a value with token axes."""
        for node in self.graph_module.graph.nodes:
            if node is self.gate or node.target in _LENGTHS or not self._carriers(node):
                continue
            try:
                answer = self._visit(node, self._carriers(node))
            except _Impossible as reason:
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
                self._check_answer(value)
            return NOWHERE
        if any(self._keeps_examples(node, source) for source in carriers):
            self.by_example.add(node)
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
            raise _Impossible(f"{node.target} is not known to leave tokens apart")
        found = NOWHERE
        for source in carriers:
            axes = self._summed(node, source) if node.target is aten.sum.dim_IntList else self.axes[source]
            answer = rule(node, source, axes) if axes else NOWHERE
            if isinstance(answer, str):
                raise _Impossible(answer)
            found |= answer
        if is_pointwise(node) or node.target in _ALIGNED:
            for source in node.all_input_nodes:
                self._want(node, source, found - self._looked_up(node, source), rank_of(node))
        elif node.target in _SHAPED_AS:
            self._want(node, node.all_input_nodes[-1], found, rank_of(node))
        elif node.target is aten.stack.default and len(carriers) != len(node.all_input_nodes):
            raise _Impossible("it stacks tokens on what are none")
        return found

    def _looked_up(self, node: fx.Node, source: fx.Node) -> Axes:
        """The axis along which `gather` looks numbers up counts no tokens of what it looks them up in."""
        if node.target is not aten.gather.default or source is not node.args[0]:
            return NOWHERE
        return frozenset({int(node.args[1]) % rank_of(node)})  # type: ignore[arg-type]  # schema: int

    def _summed(self, node: fx.Node, source: fx.Node) -> Axes:
        summed = reduced_axes(node, source) & self.axes[source]
        if not all(self.weights.is_zero(source, axis) for axis in summed):
            raise _Impossible(_OPEN)
        return self.axes[source] - summed

    def _weigh(self, node: fx.Node, carriers: list[fx.Node]) -> Axes:
        scores = carriers[0]
        axis = int(node.args[1]) % rank_of(node)  # type: ignore[arg-type]  # schema: int
        if axis in self.axes[scores] and not self.weights.is_low(scores, axis):
            raise _Impossible(_OPEN)
        return self.axes[scores]

    def _attend(self, node: fx.Node) -> Axes:
        query, keys, values = (source for source in node.args[:3] if isinstance(source, fx.Node))
        mask, rank = fused_mask(node), rank_of(query)
        if node.kwargs.get("is_causal") or (len(node.args) > _CAUSAL and node.args[_CAUSAL]):
            raise _Impossible("attention that is causal by a flag counts the tokens that are left")
        row = frozenset({rank - 2})
        if any(self.axes.get(source, row) != row for source in (query, keys, values)):
            raise _Impossible("its states do not hold one token a row")
        visible = self._aligned(mask, rank) if mask is not None else NOWHERE
        attended = keys in self.axes or values in self.axes or rank - 1 in visible
        asking = query in self.axes or rank - 2 in visible
        if attended and (mask is None or not self.weights.is_low(mask, -1)):
            raise _Impossible(_OPEN)
        for source, counts in ((query, asking), (keys, attended), (values, attended)):
            self._want(node, source, row if counts else NOWHERE, rank)
        if mask is not None:
            sides = {axis for axis, counts in ((rank - 2, asking), (rank - 1, attended)) if counts}
            self._want(node, mask, frozenset(sides), rank)
        return row if asking else NOWHERE

    def _multiply(self, node: fx.Node, carriers: list[fx.Node]) -> Axes:  # noqa: ARG002  # a rule's signature
        left, right = (source for source in node.args[:2] if isinstance(source, fx.Node))
        rank = rank_of(node)
        if left is right or min(rank_of(left), rank_of(right)) < 2:  # noqa: PLR2004  # matrices
            raise _Impossible("it is no product of two matrices")
        of_left, of_right = self._aligned(left, rank), self._aligned(right, rank)
        summed = rank - 1 in of_left or rank - 2 in of_right
        if summed and not (self.weights.is_zero(left, -1) or self.weights.is_zero(right, -2)):
            raise _Impossible(_OPEN)
        beside = (of_left | of_right) - {rank - 1, rank - 2}
        self._want(node, left, beside | (of_left & {rank - 2}) | ({rank - 1} if summed else NOWHERE), rank)
        self._want(node, right, beside | (of_right & {rank - 1}) | ({rank - 2} if summed else NOWHERE), rank)
        return beside | (of_left & {rank - 2}) | (of_right & {rank - 1})

    def _call(self, node: fx.Node, carriers: list[fx.Node]) -> Axes:
        """Gates that answer token by token, and the choice of a later cut."""
        module = self.graph_module.get_submodule(str(node.target))
        chooses = any(SELECT in (reader.target for reader in user.users) for user in node.users)
        if isinstance(module, nn.Dropout):
            return self.axes[carriers[0]]
        if not chooses and not isinstance(module, _TOKEN_WISE):
            raise _Impossible(f"{type(module).__name__} is not known to leave tokens apart")
        self.by_example.add(node)
        return self._by_row(node, [source for source in node.all_input_nodes if rank_of(source) > 1], carriers)

    def _by_row(self, node: fx.Node, rows: list[fx.Node], carriers: list[fx.Node]) -> Axes:
        """Operators and modules whose operands `rows` are (B, T) or (B, T, d), as is the result."""
        if any(source not in rows or self.axes[source] != _TOKENS for source in carriers):
            raise _Impossible("its operands do not hold one token a row")
        for source in rows:
            self._want(node, source, _TOKENS, rank_of(source))
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
            self.by_example.add(node)
            return _TOKENS
        self._by_row(node, [source for source in node.args[:3] if isinstance(source, fx.Node)], carriers)
        return NOWHERE

    def _gather(self, node: fx.Node, carriers: list[fx.Node]) -> Axes:
        """What an earlier cut gathered along another axis."""
        if node.args[2] in self.axes[carriers[0]] or carriers[0] is not node.args[0]:
            raise _Impossible("an earlier cut chose among these tokens")
        return self.axes[carriers[0]]

    def _aligned(self, source: fx.Node, rank: int) -> Axes:
        return frozenset(axis + rank - rank_of(source) for axis in self.axes.get(source, NOWHERE))

    def _want(self, node: fx.Node, source: fx.Node, axes: Axes, rank: int) -> None:
        """Let `node` read `source` gathered along `axes` of `rank`, as far as it is not gathered already."""
        if not isinstance(source.meta.get("val"), torch.Tensor):
            return
        shape = (*(1,) * (rank - rank_of(source)), *shape_of(source))
        have = self._aligned(source, rank)
        missing = frozenset(axis for axis in axes - have if size_key(shape[axis]) != 1)
        other = [axis for axis in missing if size_key(shape[axis]) != self.length]
        if other or 0 in missing or not have <= axes:
            raise _Impossible(f"{source.name} does not count its tokens where the others do")
        if missing:
            copies = self._copies(node, rank)
            if size_key(shape[0]) not in (1, self.batch, copies * self.batch):  # type: ignore[operator]  # symbols multiply
                raise _Impossible(f"axis 0 of {source.name} does not count examples")
            self.found.wants.setdefault(node, {})[source] = Want(missing, rank, copies)

    def _copies(self, node: fx.Node, rank: int) -> int:
        """c, where axis 0 of the user counts c rows of each example."""
        if node not in self.by_example:
            raise _Impossible("its first axis does not count examples")
        value = node.meta["val"]
        size = size_key(value.shape[0]) if isinstance(value, torch.Tensor) and value.dim() == rank else self.batch
        return _ratio(size, self.batch) or 1

    def _keeps_examples(self, node: fx.Node, source: fx.Node) -> bool:
        """Whether axis 0 of the result counts examples because that of an operand does."""
        if source not in self.by_example:
            return False
        value = node.meta["val"]
        if not isinstance(value, torch.Tensor):
            return True
        rule = rule_of(node)
        if rule is None or is_view(node):
            return value.dim() > 0 and _ratio(size_key(value.shape[0]), self.batch) is not None
        return rule(node, source, frozenset({0})) == frozenset({0})

    def _check_answer(self, value: fx.Node) -> None:
        if value not in self.by_example or 0 in self.axes[value] or size_key(shape_of(value)[0]) != self.batch:
            raise _Impossible(f"tokens of {value.name} do not stand behind their examples")


def _ratio(size: object, batch: object) -> int | None:
    """c where size = c·batch."""
    quotient = size / batch  # type: ignore[operator]  # numbers and symbols divide
    number = getattr(quotient, "is_Integer", isinstance(quotient, int))
    return int(quotient) if number else None
