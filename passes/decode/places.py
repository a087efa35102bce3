"""Places in an answer: what a graph counts from 0 to T counts on from the S rows of a cache.

    arange(T), of queries and embeddings                          arange(S, S + T)
    arange(T), of keys                                       →    arange(S + T)
    mask, bias (…, T, T) made of both ─▶ attention                (…, T, S + T) ─▶ attention

An arange is one of keys where it meets one of queries: in a value (…, T, T) it stands on the last axis.

Sound: everything between an arange and its attention works place by place, so longer tables hold the old ones' numbers
for old places. Refuses anything else in between.
"""

from __future__ import annotations

import operator
from collections.abc import Collection

import torch
from torch import fx

from ...errors import PassError
from ..find.attention import is_fused
from ..find.token_rules import Axes, rank_of, rule_of, size_key
from ..graph.edit import emit, shape_of, tensor_value

aten = torch.ops.aten
_RANGES = (aten.arange.default, aten.arange.start)
#: Beside the operators that `token_rules` knows, those that work place by place and stand in masks and biases alone.
_PLACE_BY_PLACE = (
    aten.le.Tensor,
    aten.lt.Tensor,
    aten.ge.Tensor,
    aten.gt.Tensor,
    aten.__and__.Tensor,
    aten.__or__.Tensor,
    aten.logical_and.default,
    aten.min.other,
    aten.zeros_like.default,
    aten.full_like.default,
    aten.embedding.default,
)
_TABLE = 2  # axes of (queries, keys)


def count_on(graph_module: fx.GraphModule, tokens: fx.Node, past: fx.Node, *, origin: str) -> set[fx.Node]:
    """Let every arange over the new tokens count on; the aranges of keys, which are longer now.

    Args:
        tokens: (B, T), the new tokens; past: the number S, a size.

    Raises:
        PassError: an arange whose way to its attention is not understood.
    """
    graph, length = graph_module.graph, size_key(shape_of(tokens)[1])
    found = [node for node in graph.nodes if node.target in _RANGES and size_key(shape_of(node)[0]) == length]
    if any(node.target is aten.arange.start and node.args[0] != 0 for node in found):
        raise PassError("An arange over the answer does not start at 0.", given=str(found[0]))
    keys = {node for node in found if _is_of_keys(node, length)}
    for node in found:
        with graph.inserting_before(node):
            new = node.args[-1] if isinstance(node.args[-1], fx.Node) else None
            if new is None:
                raise PassError(f"{node.name} counts to a constant.", given=str(node.args))
            whole = emit(graph, operator.add, (past, new), origin=origin, like=tokens)
        node.target = aten.arange.start
        node.args = (0, whole) if node in keys else (past, whole)
    return keys


def grow(graph_module: fx.GraphModule, grown: Collection[fx.Node]) -> None:
    """Give everything made of longer values its shape, up to the attentions.

    Args:
        grown: the values that are longer already; those without inputs that are longer get their shapes too.

    Raises:
        PassError: an operator in between that may mix places.
    """
    longer = set(grown)
    for node in graph_module.graph.nodes:
        carriers = longer.intersection(node.all_input_nodes)
        if is_fused(graph_module, node) or node.op == "output" or not (carriers or node in longer):
            continue
        if carriers and not _keeps_places(node):
            raise PassError(f"{node.name} stands between a cache and its attention.", given=str(node.target))
        if node.target is aten.expand.default and carriers:
            source = shape_of(node.all_input_nodes[0])
            front = rank_of(node) - len(source)
            sizes = [
                -1 if axis >= front and source[axis - front] != 1 else size for axis, size in enumerate(node.args[1])
            ]
            node.update_arg(1, sizes)
        if node.target is not aten.cat.default:
            _infer(node)
        longer.add(node)


def _infer(node: fx.Node) -> None:
    """The shape that a node has on its operands as they are."""
    args = fx.node.map_arg(node.args, lambda operand: operand.meta["val"])
    with tensor_value(node).fake_mode:  # type: ignore[attr-defined]  # symbolic values are fake
        node.meta["val"] = node.target(*args, **node.kwargs)  # type: ignore[operator]  # an operator; its options are plain


def _is_of_keys(arange: fx.Node, length: object) -> bool:
    """Whether an arange stands on the last axis where it meets another over the same tokens."""
    pending: list[tuple[fx.Node, Axes]] = [(arange, frozenset({0}))]
    while pending:
        source, axes = pending.pop()
        for node in source.users:
            if node.target is aten.embedding.default or not _keeps_places(node):
                continue  # embedded places are states, which are of queries
            rule, front = rule_of(node), rank_of(node) - rank_of(source)
            moved = rule(node, source, axes) if rule is not None else frozenset(axis + front for axis in axes)
            if isinstance(moved, str):
                raise PassError(f"{node.name} mixes places of the answer: {moved}.", given=str(node.target))
            if sum(size_key(size) == length for size in shape_of(node)) >= _TABLE:
                return rank_of(node) - 1 in moved
            pending.append((node, moved))
    return False


def _keeps_places(node: fx.Node) -> bool:
    return rule_of(node) is not None or node.target in _PLACE_BY_PLACE
