"""Reads of kept tokens: a value that holds all tokens, gathered where a user needs the kept ones, once for all users.

A gather sinks towards the inputs as long as there is less to copy, or nothing more to compute, further down:

    gather(gather(x, 3), 2)                         both from x, rows first
    gather(expand(x), 2)                            expand(gather(x, 2))
    gather(mul((B,1,1,T), (B,1,T,1)), 2 and 3)      mul(gather((B,1,1,T), 3), gather((B,1,T,1), 2))
    gather(where(mask, bias, min), 2)               where(gather(mask, 2), bias, min), if all read it so
    gather(visible_keys(p, p, mask, w), 2 and 3)    visible_keys(gather(p, 1), gather(p, 1), gather(mask, 1), w)

Sound: gathering along an axis commutes with everything that treats that axis place by place.
"""

from __future__ import annotations

import torch
from torch import fx

from ...runtime.ops import token_ops  # noqa: F401  # defines torch.ops.gatefx.gather_tokens
from ..find.kept_operands import Want
from ..find.kept_tokens import KeptTokens
from ..find.last_token import VISIBLE
from ..find.selections import Selection
from ..find.token_rules import is_pointwise, rank_of, size_key
from ..graph.edit import emit, shape_of

aten = torch.ops.aten
_GATHER = torch.ops.gatefx.gather_tokens.default
_QUERIES, _KEYS = 2, 3  # axes of what is visible
_OUTER = (aten.__and__.Tensor, aten.bitwise_and.Tensor, aten.logical_and.default)


class Gathered:
    """Emits the gathers of one cut, each as early as its operands are there."""

    def __init__(self, graph: fx.Graph, selection: Selection, kept: KeptTokens, count: fx.Node, origin: str) -> None:
        self.graph = graph
        self.selection = selection
        self.kept = kept
        self.count = count
        self.origin = origin
        self.made: dict[tuple[fx.Node, Want], fx.Node] = {}

    def read(self, source: fx.Node, want: Want) -> fx.Node:
        """`source` (…, T, …) as `want` says: (B, …, K, …), with `want.rank` axes."""
        key = (source, want)
        if key not in self.made:
            self.made[key] = self._sunk(source, want) if rank_of(source) == want.rank else self._gather(source, want)
        return self.made[key]

    def _sunk(self, source: fx.Node, want: Want) -> fx.Node:
        if source.target is _GATHER and source.args[1] is self.selection.indices:
            axis = int(source.args[2])  # type: ignore[arg-type]  # schema: int
            return self.read(source.all_input_nodes[0], _along(want, want.axes | {axis}))
        if source.target is aten.expand.default:
            return self._expand(source, want)
        if source.target is VISIBLE:
            return self._see_again(source, want)
        if self._is_outer(source, want) or self._is_read_so_by_all(source, want):
            return self._recompute(source, want)
        return self._gather(source, want)

    def _is_outer(self, source: fx.Node, want: Want) -> bool:
        """Whether every operand lacks one of the axes, so that gathering them copies less."""
        if not _combines(source):
            return False
        tensors = [operand for operand in source.all_input_nodes if rank_of(operand)]
        return all(_has(operand, want) < want.axes for operand in tensors)

    def _is_read_so_by_all(self, source: fx.Node, want: Want) -> bool:
        return _combines(source) and all(self.kept.wants.get(user, {}).get(source) == want for user in source.users)

    def _recompute(self, source: fx.Node, want: Want) -> fx.Node:
        operands = {operand: self._operand(operand, want) for operand in source.all_input_nodes}
        with self.graph.inserting_after(max(source, self.count, *operands.values())):
            return self._emit(source.target, fx.node.map_arg(source.args, operands.__getitem__), source)

    def _operand(self, operand: fx.Node, want: Want) -> fx.Node:
        axes = _has(operand, want)
        return self.read(operand, _along(want, axes)) if axes else operand

    def _expand(self, source: fx.Node, want: Want) -> fx.Node:
        operand, given = source.all_input_nodes[0], source.args[1]
        value = self._operand(operand, want)
        sizes = [self.count if axis in want.axes else size for axis, size in enumerate(given)]  # type: ignore[arg-type]  # schema: SymInt[]
        if value is not operand:
            sizes[0] = -1  # it has a row for each that the user has
        with self.graph.inserting_after(max(source, value, self.count)):
            return self._emit(aten.expand.default, (value, sizes), source)

    def _see_again(self, source: fx.Node, want: Want) -> fx.Node:
        """What is visible, from the positions of the kept tokens alone."""
        rows = Want(frozenset({1}), 2, 1)
        sides = [_QUERIES in want.axes, _KEYS in want.axes, _KEYS in want.axes]
        nodes = [node for node in source.args[:3] if isinstance(node, fx.Node)]
        operands = [self.read(node, rows) if side else node for node, side in zip(nodes, sides, strict=True)]
        with self.graph.inserting_after(max(source, self.count, *operands)):
            return self._emit(VISIBLE, (*operands, source.args[3]), source)

    def _gather(self, source: fx.Node, want: Want) -> fx.Node:
        with self.graph.inserting_after(max(source, self.count)):
            place = self.graph.create_node("call_function", _GATHER, ())
        with self.graph.inserting_before(place):
            value = source
            for _ in range(want.rank - rank_of(source)):
                value = self._emit(aten.unsqueeze.default, (value, 0), source)
            shared = shape_of(value)[0] == 1
            for axis in sorted(want.axes):
                value = self._emit(_GATHER, (value, self.selection.indices, axis), source)
            if shared and want.copies > 1:
                value = self._copied(value, want, source)
        self.graph.erase_node(place)
        return value

    def _copied(self, value: fx.Node, want: Want, like: fx.Node) -> fx.Node:
        """(B, …) → (c·B, …), c rows of each example one after the other."""
        spread = self._emit(aten.unsqueeze.default, (value, 1), like)
        copied = self._emit(aten.expand.default, (spread, [-1, want.copies, *[-1] * (want.rank - 1)]), like)
        return self._emit(aten.flatten.using_ints, (copied, 0, 1), like)

    def _emit(self, target: object, args: tuple[fx.node.Argument, ...], like: fx.Node) -> fx.Node:
        return emit(self.graph, target, args, origin=self.origin, like=like)  # type: ignore[arg-type]  # an operator


def _combines(source: fx.Node) -> bool:
    """Whether a value can be computed again from gathered operands."""
    tensors = all(isinstance(operand.meta["val"], torch.Tensor) for operand in source.all_input_nodes)
    return tensors and (is_pointwise(source) or source.target in _OUTER) and not source.kwargs


def _along(want: Want, axes: frozenset[int]) -> Want:
    return Want(axes, want.rank, want.copies)


def _has(operand: fx.Node, want: Want) -> frozenset[int]:
    """The wanted axes that an operand has, rather than being spread over them."""
    shift = want.rank - rank_of(operand)
    shape = shape_of(operand)
    return frozenset(axis for axis in want.axes if axis >= shift and size_key(shape[axis - shift]) != 1)
