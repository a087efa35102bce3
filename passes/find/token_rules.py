"""How one operator moves a token axis: axes of an operand → axes of the result, or why tokens do not stay apart.

Every rule is `rule(node, source, axes)`: `axes` (never empty) count tokens in `source`, an operand of `node`. A rule
answers with the axes of the result that count them (none where a constant read one token), or with the reason, as
words, why the result's rows are no longer one token each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import fx

from ..graph.edit import Shape, shape_of, tensor_value
from ..graph.signature import constant_size

aten = torch.ops.aten
Axes: TypeAlias = frozenset[int]
Rule: TypeAlias = Callable[[fx.Node, fx.Node, Axes], Axes | str]
NOWHERE: Axes = frozenset()


def size_key(size: int | torch.SymInt) -> object:
    """A size in a form that compares without a guard: a number, or the symbols' expression."""
    known = constant_size(size)
    return known if known is not None else size.node.expr  # type: ignore[union-attr]  # an int is always known


def _broadcast(node: fx.Node, source: fx.Node, axes: Axes) -> Axes | str:
    shift = len(shape_of(node)) - len(shape_of(source))
    return frozenset(axis + shift for axis in axes)


def _dimension(node: fx.Node, source: fx.Node, default: int = 0, position: int = 1) -> int:
    given = node.args[position] if len(node.args) > position else node.kwargs.get("dim", default)
    return int(given) % len(shape_of(source))  # type: ignore[arg-type]  # the operators' schemas say int


def _rows(node: fx.Node, source: fx.Node, axes: Axes) -> Axes | str:
    """Linear layers: the last axis of the first operand is summed."""
    last = len(shape_of(source)) - 1
    if source is not node.args[0] or last in axes:
        return "a linear layer sums over tokens"
    return axes


def _product_rows(node: fx.Node, source: fx.Node, axes: Axes) -> Axes | str:
    """addmm of rows and a weight, as Conv1D has it."""
    return axes if source is node.args[1] and axes == {0} else "a linear layer sums over tokens"


def _normalized(node: fx.Node, source: fx.Node, axes: Axes) -> Axes | str:
    normalized = node.args[1]
    rank = len(shape_of(source))
    mixed = range(rank - len(normalized), rank)  # type: ignore[arg-type]  # layer_norm's schema says int[]
    return f"{node.target} normalises over tokens" if axes & set(mixed) else axes


def reduced_axes(node: fx.Node, source: fx.Node) -> Axes:
    """The axes that a reduction takes away."""
    rank = len(shape_of(source))
    given = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    dims = range(rank) if given is None or given == [] else [given] if isinstance(given, int) else given
    return frozenset(int(dim) % rank for dim in dims)  # type: ignore[union-attr, arg-type]  # schema: int[]


def reduced(node: fx.Node, source: fx.Node, axes: Axes) -> Axes | str:
    """The axes left by a reduction over others."""
    gone = reduced_axes(node, source)
    if axes & gone:
        return f"{node.target} over tokens counts those that are dropped"
    kept = len(shape_of(node)) == len(shape_of(source))
    return axes if kept else frozenset(axis - sum(dim < axis for dim in gone) for axis in axes)


def _along(node: fx.Node, source: fx.Node, axes: Axes) -> Axes | str:
    """Operators along one axis: cumulative ones, softmax, gather."""
    return f"{node.target} runs along the tokens" if _dimension(node, source) in axes else axes


def _transposed(node: fx.Node, source: fx.Node, axes: Axes) -> Axes | str:
    rank = len(shape_of(source))
    first, second = (int(dim) % rank for dim in node.args[1:3])  # type: ignore[arg-type]  # schema: int
    swap = {first: second, second: first}
    return frozenset(swap.get(axis, axis) for axis in axes)


def _last_swapped(_node: fx.Node, source: fx.Node, axes: Axes) -> Axes | str:
    swap = {rank_of(source) - 2: rank_of(source) - 1, rank_of(source) - 1: rank_of(source) - 2}
    return frozenset(swap.get(axis, axis) for axis in axes)


def _permuted(node: fx.Node, source: fx.Node, axes: Axes) -> Axes | str:
    rank = len(shape_of(source))
    order = [int(dim) % rank for dim in node.args[1]]  # type: ignore[union-attr, arg-type]  # schema: int[]
    return frozenset(order.index(axis) for axis in axes)


def _unsqueezed(node: fx.Node, _source: fx.Node, axes: Axes) -> Axes | str:
    dim = int(node.args[1]) % len(shape_of(node))  # type: ignore[arg-type]  # schema: int
    return frozenset(axis + (axis >= dim) for axis in axes)


def _squeezed(node: fx.Node, source: fx.Node, axes: Axes) -> Axes | str:
    if len(shape_of(node)) == len(shape_of(source)):
        return axes
    gone = reduced_axes(node, source)
    return "it squeezes the token axis" if axes & gone else frozenset(a - sum(d < a for d in gone) for a in axes)


def _viewed(node: fx.Node, source: fx.Node, axes: Axes) -> Axes | str:
    """An axis stays itself where its size, and the product of the sizes before it, stay."""
    before, after = _positions(shape_of(source)), _positions(shape_of(node))
    found = [after.index(before[axis]) if before[axis] in after else None for axis in axes]
    if None in found:
        return _flattened(shape_of(source), shape_of(node), axes)
    return frozenset(axis for axis in found if axis is not None)


def _flattened(before: Shape, after: Shape, axes: Axes) -> Axes | str:
    """(B, T, …) as rows (B·T, …), every row still one token, and back: the rows' axis is 0."""
    if axes == {1} and _product(before[:2]) == size_key(after[0]):
        return frozenset({0})
    if axes == {0} and len(after) > 2 and _product(after[:2]) == size_key(before[0]):  # noqa: PLR2004
        return frozenset({1})
    return "a view merges the token axis with another"


def _product(sizes: Shape) -> object:
    return size_key(sizes[0]) * size_key(sizes[1])  # type: ignore[operator]  # numbers and symbols multiply


def _positions(shape: Shape) -> list[tuple[object, object]]:
    """(product of the sizes before, size) of every axis."""
    product: object = 1
    rows = []
    for size in shape:
        key = size_key(size)
        rows.append((product, key))
        product = product * key  # type: ignore[operator]  # numbers and symbols multiply
    return rows


def _repeated(node: fx.Node, source: fx.Node, axes: Axes) -> Axes | str:
    moved = _broadcast(node, source, axes)
    counts: list[object] = list(node.args[1])  # type: ignore[arg-type]  # schema: SymInt[]
    return "it repeats tokens" if any(counts[axis] != 1 for axis in moved) else moved  # type: ignore[index]


def _unbound(node: fx.Node, source: fx.Node, axes: Axes) -> Axes | str:
    dim = _dimension(node, source)
    return "it takes the tokens one by one" if dim in axes else frozenset(a - (a > dim) for a in axes)


def _split(node: fx.Node, source: fx.Node, axes: Axes) -> Axes | str:
    return "it splits the token axis" if _dimension(node, source, position=2) in axes else axes


def _concatenated(node: fx.Node, source: fx.Node, axes: Axes) -> Axes | str:
    return "it joins tokens and others in one axis" if _dimension(node, source) in axes else axes


def _stacked(node: fx.Node, source: fx.Node, axes: Axes) -> Axes | str:
    dim = int(node.args[1] if len(node.args) > 1 else 0) % (len(shape_of(source)) + 1)  # type: ignore[arg-type]  # int
    return frozenset(axis + (axis >= dim) for axis in axes)


def _reshaped_as(node: fx.Node, source: fx.Node, axes: Axes) -> Axes | str:
    return _viewed(node, source, axes) if source is node.args[0] else NOWHERE


def _gathered(node: fx.Node, source: fx.Node, axes: Axes) -> Axes | str:
    if source is not node.args[0]:
        return "it reads places that the tokens say"
    return "it reads tokens at computed positions" if _dimension(node, source) in axes else axes


def _indexed(_node: fx.Node, _source: fx.Node, _axes: Axes) -> Axes | str:
    return "it reads tokens at computed positions"


def _selected(node: fx.Node, source: fx.Node, axes: Axes) -> Axes | str:
    dim = _dimension(node, source)
    if dim not in axes:
        return frozenset(axis - (axis > dim) for axis in axes)
    return NOWHERE if len(axes) == 1 and isinstance(node.args[2], int) else "it reads a token at a computed position"


def _sliced(node: fx.Node, source: fx.Node, axes: Axes) -> Axes | str:
    dim = _dimension(node, source)
    if dim not in axes or size_key(shape_of(node)[dim]) == size_key(shape_of(source)[dim]):
        return axes
    return NOWHERE if len(axes) == 1 and read_positions(node) else "it takes a part of the tokens"


def read_positions(node: fx.Node) -> tuple[int, ...]:
    """The positions that a select or slice with constants reads; none where they depend on the length."""
    if node.target is aten.select.int:
        return (node.args[2],) if isinstance(node.args[2], int) else ()
    start, end = (*node.args[2:4], None, None)[:2]
    first = 0 if start is None else start
    if not isinstance(first, int) or not (isinstance(end, int) or end is None) or len(node.args) > 4:  # noqa: PLR2004
        return ()
    if first < 0:
        return tuple(range(first, 0 if end is None else min(end, 0)))
    return tuple(range(first, end)) if end is not None and 0 <= end < _MANY else ()


_MANY = 64
"""A constant slice of more tokens than this is a window, not a read."""

_POINTWISE = (
    "abs add.Tensor add.Scalar bitwise_not clamp clamp_min clamp_max div.Tensor div.Scalar div.Tensor_mode eq.Scalar "
    "erf exp gelu ge.Scalar gt.Scalar hardtanh le.Scalar leaky_relu log log1p logical_not lt.Scalar "
    "masked_fill.Scalar masked_fill.Tensor maximum minimum mul.Tensor mul.Scalar multiply.Tensor ne.Scalar neg "
    "pow.Tensor_Scalar pow.Tensor_Tensor reciprocal relu rsqrt rsub.Scalar sigmoid sign silu softplus sqrt square "
    "sub.Tensor sub.Scalar tanh elu mish hardswish relu6 where.self where.ScalarOther where.ScalarSelf"
)
_COPIES = "alias clone contiguous detach lift_fresh_copy to.dtype to.device _to_copy type_as expand expand_as"
_RULES: Mapping[str, Rule] = {
    **dict.fromkeys(_POINTWISE.split(), _broadcast),
    **dict.fromkeys(_COPIES.split(), _broadcast),
    **dict.fromkeys(("view", "reshape", "_unsafe_view", "flatten.using_ints", "unflatten.int"), _viewed),
    **dict.fromkeys(("softmax.int", "_softmax", "log_softmax.int", "_log_softmax", "cumsum", "glu"), _along),
    **dict.fromkeys(("mean.dim", "sum.dim_IntList", "amax", "amin", "var.correction", "argmax", "any.dim"), reduced),
    **dict.fromkeys(("squeeze.dim", "squeeze.dims"), _squeezed),
    **dict.fromkeys(("split.Tensor", "split_with_sizes", "chunk"), _split),
    **dict.fromkeys(("linear",), _rows),
    **dict.fromkeys(("layer_norm", "rms_norm"), _normalized),
    "addmm": _product_rows,
    "transpose.int": _transposed,
    "t": _last_swapped,
    "mT": _last_swapped,
    "permute": _permuted,
    "unsqueeze": _unsqueezed,
    "repeat": _repeated,
    "unbind.int": _unbound,
    "cat": _concatenated,
    "stack": _stacked,
    "reshape_as": _reshaped_as,
    "view_as": _reshaped_as,
    "gather": _gathered,
    "index.Tensor": _indexed,
    "select.int": _selected,
    "slice.Tensor": _sliced,
}
_ZERO_KEEPERS = (*_COPIES.split(), "mul.Tensor", "mul.Scalar", "multiply.Tensor", "neg", "relu")
_LAYOUTS = (_viewed, _transposed, _last_swapped, _permuted, _unsqueezed, _squeezed, _sliced)


def rule_of(node: fx.Node) -> Rule | None:
    """The rule of a node's operator; None where none is known."""
    name = str(node.target).removeprefix("aten.").removesuffix(".default")
    return _RULES.get(name) if node.op == "call_function" else None


def is_pointwise(node: fx.Node) -> bool:
    """Whether each number of the result comes from the operands' numbers at the same place, after broadcasting."""
    return rule_of(node) is _broadcast


def is_view(node: fx.Node) -> bool:
    """Whether the result reads the operand's numbers in their order, under other axes."""
    return rule_of(node) is _viewed


def rearranges(node: fx.Node) -> bool:
    """Whether the result holds the first operand's numbers and no others."""
    name = str(node.target).removeprefix("aten.").removesuffix(".default")
    return rule_of(node) is not None and (name in _COPIES.split() or _RULES[name] in _LAYOUTS)


def keeps_zeros(node: fx.Node, source: fx.Node) -> bool:
    """Whether the result is zero wherever `source`, an operand, is."""
    name = str(node.target).removeprefix("aten.").removesuffix(".default")
    if name in ("div.Tensor", "div.Scalar"):
        return source is node.args[0]
    return name in _ZERO_KEEPERS or _RULES.get(name) in _LAYOUTS


def rank_of(node: fx.Node) -> int:
    """Number of axes."""
    return tensor_value(node).dim()
