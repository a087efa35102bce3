"""Where the tokens of one state go: which axes of which later values count them, and every place that mixes them.

    state (B, T, d) ─▶ linear ─▶ view (B, T, h, e) ─▶ transpose (B, h, T, e) ─▶ attention ─▶ … ─▶ select(1, 0)
     axis 1             1         1                    2                         keys: T           reads position 0

Followed operator by operator; one that is not known to leave tokens apart is a miss. Values that do not come from the
state (masks, positions) are not followed.

    attention       sdpa, or a softmax over the token axis, whose weights are nothing at keys that are shut
    pool            sum over tokens of a product with something that comes from the attention mask
    constant read   select or slice with numbers on the token axis
    miss            everything else that mixes tokens: mean, max, conv, cumsum, a computed position, …
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field

import torch
from torch import fx, nn

from ...models.families import ATTENTION_MASK
from ...models.gate_modules import GATE_MODULES
from ..graph.edit import module_path, shape_of
from .adapters import Miss
from .attention import Attention, find_attention
from .token_rules import NOWHERE, Axes, keeps_zeros, rank_of, read_positions, reduced, reduced_axes, rule_of, size_key

aten = torch.ops.aten
_PRODUCTS = (aten.matmul.default, aten.bmm.default)
_SHAPES = (aten.sym_size.int, aten.new_ones.default, aten.zeros_like.default, aten.full_like.default)
_STATE_AXES = 3
_READS = (aten.select.int, aten.slice.Tensor)


@dataclass(frozen=True)
class Pool:
    """A sum over tokens of `product` = states · `mask`, where `mask` (B, T, …) comes from the attention mask."""

    total: fx.Node
    product: fx.Node
    mask: fx.Node


@dataclass(frozen=True)
class TokenFlow:
    """What becomes of the tokens of `state`, (B, T, d).

    Attributes:
        axes: value → its axes that count tokens, for every value that has some and comes from the state.
        attentions: those whose keys are the tokens; pools: masked sums over them.
        positions: what constants read, 0 from the start, -1 from the end; misses: what mixes tokens otherwise.
    """

    state: fx.Node
    axes: dict[fx.Node, Axes] = field(default_factory=dict)
    attentions: list[Attention] = field(default_factory=list)
    pools: list[Pool] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    misses: list[Miss] = field(default_factory=list)


def follow_tokens(graph_module: fx.GraphModule, state: fx.Node) -> TokenFlow:
    """Follow the tokens of `state`, (B, T, d), to the outputs."""
    return _Walk(graph_module, state).run()


class _Walk:
    """One pass over the graph in order; `shut` holds the axes along which a value is zero at shut tokens."""

    def __init__(self, graph_module: fx.GraphModule, state: fx.Node) -> None:
        self.graph_module = graph_module
        self.flow = TokenFlow(state, {state: frozenset({1})})
        self.shut: dict[fx.Node, Axes] = {}
        self.attention = {item.node: item for item in find_attention(graph_module)}
        self.masks = _descendants(graph_module.graph)

    def run(self) -> TokenFlow:
        for node in self.graph_module.graph.nodes:
            carriers = [source for source in node.all_input_nodes if source in self.flow.axes]
            if node.op == "output":
                self.flow.misses.extend(
                    Miss(_place(source), "it merges the token axis with another")
                    for source in carriers
                    if self._is_flat(source)
                )
            if not carriers or node.op == "output" or node.target in _SHAPES:
                continue
            answer = self._visit(node, carriers)
            if isinstance(answer, str):
                self.flow.misses.append(Miss(_place(node), answer))
            elif answer:
                self.flow.axes[node] = answer
                self._keep_zeros(node)
        return self.flow

    def _is_flat(self, value: fx.Node) -> bool:
        """Whether the first axis holds the tokens of all examples, (B·T, …)."""
        return 0 in self.flow.axes[value] and size_key(shape_of(value)[0]) != size_key(shape_of(self.flow.state)[1])

    def _visit(self, node: fx.Node, carriers: list[fx.Node]) -> Axes | str:
        attention = self.attention.get(node)
        if attention is not None and attention.is_fused:
            return self._attend(attention)
        if attention is not None and attention.key_axis in self.flow.axes[attention.keys]:
            return self._weigh(attention)
        if node.target in _PRODUCTS:
            return self._multiply(node)
        if node.op == "call_module":
            return self._call(node, carriers)
        if node.target is operator.getitem:
            return self.flow.axes[carriers[0]]
        if node.target is aten.sum.dim_IntList and reduced_axes(node, carriers[0]) & self.flow.axes[carriers[0]]:
            return self._sum(node, carriers[0])
        return self._apply(node, carriers)

    def _apply(self, node: fx.Node, carriers: list[fx.Node]) -> Axes | str:
        rule = rule_of(node)
        if rule is None:
            return f"{node.target} is not known to leave tokens apart"
        found = NOWHERE
        for source in carriers:
            answer = rule(node, source, self.flow.axes[source])
            if isinstance(answer, str):
                return answer
            found |= answer
        if not found and node.target in _READS:
            self.flow.positions.extend(p for p in read_positions(node) if p not in self.flow.positions)
        return found

    def _call(self, node: fx.Node, carriers: list[fx.Node]) -> Axes | str:
        """Dropout, and gates that answer token by token; a gate with another answer has pooled them."""
        module = self.graph_module.get_submodule(str(node.target))
        axes = self.flow.axes[carriers[0]]
        by_token = rank_of(node) == _STATE_AXES and _sizes(node)[:2] == _sizes(self.flow.state)[:2] and axes == {1}
        if isinstance(module, nn.Dropout) or (isinstance(module, GATE_MODULES) and by_token):
            return axes
        return f"{type(module).__name__} reads all tokens of a state at once"

    def _attend(self, attention: Attention) -> Axes | str:
        axes = self.flow.axes
        rows = frozenset({attention.key_axis})
        operands = (attention.query, attention.keys, attention.values)
        query, keys, values = (axes.get(node, NOWHERE) if node is not None else NOWHERE for node in operands)
        if (keys or values) and not keys == values == rows:
            return "its keys and values do not hold one token a row"
        if keys:
            answer = self._record(attention)
            if answer:
                return answer
        return query

    def _weigh(self, attention: Attention) -> Axes | str:
        answer = self._record(attention)
        if answer:
            return answer
        self.shut[attention.node] = frozenset({attention.key_axis})
        return self.flow.axes[attention.keys]

    def _record(self, attention: Attention) -> str:
        """Take note of attention over the tokens, or say why its keys cannot be shut."""
        if attention.causal:
            return f"causal attention ({attention.causal})"
        masked = attention.keys if attention.is_fused else attention.scores or attention.keys
        if _sizes(masked)[0] != _sizes(self.flow.state)[0]:
            return "the first axis of its scores is not the batch"
        if rank_of(masked) != rank_of(attention.keys):
            return "its mask is applied to scores of another shape"
        self.flow.attentions.append(attention)
        return ""

    def _multiply(self, node: fx.Node) -> Axes | str:
        """A product of matrices sums over tokens only where weights of attention are one of them."""
        found, summed = NOWHERE, False
        for source, contracted in zip(node.all_input_nodes, (-1, -2), strict=False):
            axes, last = self.flow.axes.get(source, NOWHERE), rank_of(source) + contracted
            shift = rank_of(node) - rank_of(source)
            found |= frozenset(axis + shift for axis in axes if axis != last)
            summed |= last in axes
        left, right = node.all_input_nodes[0], node.all_input_nodes[-1]
        shut = rank_of(left) - 1 in self.shut.get(left, NOWHERE) or rank_of(right) - 2 in self.shut.get(right, NOWHERE)
        return "it sums over tokens with weights that do not come from attention" if summed and not shut else found

    def _sum(self, node: fx.Node, source: fx.Node) -> Axes | str:
        summed = reduced_axes(node, source) & self.flow.axes[source]
        if not summed <= self.shut.get(source, NOWHERE):
            mask = self._mask_of(source)
            if mask is None:
                return "it sums over tokens without the attention mask"
            self.flow.pools.append(Pool(node, source, mask))
        rest = self.flow.axes[source] - summed
        return reduced(node, source, rest) if rest else NOWHERE

    def _mask_of(self, product: fx.Node) -> fx.Node | None:
        """The factor of a product that comes from the attention mask alone."""
        if product.target is not aten.mul.Tensor:
            return None
        factors = [factor for factor in product.all_input_nodes if factor not in self.flow.axes]
        return next((factor for factor in factors if factor in self.masks), None)

    def _keep_zeros(self, node: fx.Node) -> None:
        dropout = node.op == "call_module" and isinstance(self.graph_module.get_submodule(str(node.target)), nn.Dropout)
        for source in node.all_input_nodes:
            if source not in self.shut or not (dropout or keeps_zeros(node, source)):
                continue
            rule = rule_of(node)
            axes = self.shut[source] if rule is None else rule(node, source, self.shut[source])
            if not isinstance(axes, str):
                self.shut[node] = self.shut.get(node, NOWHERE) | axes


def _descendants(graph: fx.Graph) -> set[fx.Node]:
    """What is computed from the attention mask."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if (node.op == "placeholder" and node.target == ATTENTION_MASK) or (
            node.target is not aten.sym_size.int and any(source in found for source in node.all_input_nodes)
        ):
            found.add(node)
    return found


def _sizes(node: fx.Node) -> tuple[object, ...]:
    return tuple(size_key(size) for size in shape_of(node))


def _place(node: fx.Node) -> str:
    path = module_path(node)
    return f"{path} ({node.name})" if path else node.name
