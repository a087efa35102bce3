"""The token operators in ONNX: bodies in standard ONNX, and translations. Axes as in `token_ops.py`.

`gather_tokens` has three nodes: which one suits depends on the axis and on whether every example has rows of its own,
and both are known when the graph is translated.
"""

from __future__ import annotations

import onnx_ir
from onnxscript import BOOL, FLOAT, INT64, script
from onnxscript.onnx_opset import opset18 as op

from .onnx_domain import ANY, FLAGS, FLOATS, INDICES, OPSET, bare_node


@script(OPSET, default_opset=op)  # type: ignore[untyped-decorator]
def SelectTokens(priority: FLOAT, counts: INT64) -> tuple[INT64, BOOL]:  # noqa: N802  (the ONNX operator's name)
    """The K positions of largest priority in each row, ascending, and which of them are among the row's count."""
    one = op.Constant(value_ints=[1])
    # No count is above T; said once more for engines that would read past the row.
    length = op.Shape(priority, start=1, end=2)
    most = op.Min(op.Max(op.ReduceMax(counts, keepdims=1), one), length)
    # TopK lists equal values in the order of their positions.
    _priorities, ranked = op.TopK(priority, most, axis=1, largest=1, sorted=1)
    indices, ranks = op.TopK(ranked, most, axis=1, largest=0, sorted=1)
    valid = op.Less(ranks, op.Unsqueeze(counts, one))
    return indices, valid


@script(OPSET, default_opset=op)  # type: ignore[untyped-decorator]
def GatherTokens(x: FLOAT, indices: INT64) -> FLOAT:  # noqa: N802
    """x (B, T, *) at indices (B, K): (B, K, *)."""
    kept = op.GatherND(x, op.Unsqueeze(indices, op.Constant(value_ints=[2])), batch_dims=1)
    return kept  # noqa: RET504  (names the function's output)


@script(OPSET, default_opset=op)  # type: ignore[untyped-decorator]
def GatherLastTokens(x: FLOAT, indices: INT64) -> FLOAT:  # noqa: N802
    """x (c*B, *, T) at indices (B, K): (c*B, *, K). Single numbers are copied, not rows."""
    examples = op.Shape(indices, start=0, end=1)
    rest = op.Constant(value_ints=[-1])
    flat = op.Reshape(x, op.Concat(examples, rest, op.Shape(x, start=-1), axis=0))
    one = op.Constant(value_ints=[1])
    columns = op.Expand(op.Unsqueeze(indices, one), op.Concat(one, op.Shape(flat, start=1, end=2), one, axis=0))
    kept = op.GatherElements(flat, columns, axis=2)
    result = op.Reshape(kept, op.Concat(op.Shape(x, end=-1), op.Shape(indices, start=1), axis=0))
    return result  # noqa: RET504


@script(OPSET, default_opset=op)  # type: ignore[untyped-decorator]
def GatherTokensAlong(x: FLOAT, indices: INT64, dim: int) -> FLOAT:  # noqa: N802
    """x (c*B, P…, T, *) or (1, P…, T, *), with T on axis `dim` >= 1, at indices (B, K): (c*B or B, P…, K, *)."""
    zero, one, rest = op.Constant(value_ints=[0]), op.Constant(value_ints=[1]), op.Constant(value_ints=[-1])
    shape = op.Shape(x)
    axis = op.Reshape(op.Constant(value_int=dim), one)
    after = op.Slice(shape, op.Add(axis, one), op.Shape(shape), zero)
    examples = op.Shape(indices, start=0, end=1)
    # Where each row of T tokens begins in x flattened to (rows * T, *), as (B, c*P, 1), or (1, P, 1) if all share x.
    rows = op.ReduceProd(op.Slice(shape, zero, axis, zero), keepdims=0)
    starts = op.Mul(op.Range(op.Constant(value_int=0), rows, op.Constant(value_int=1)), op.Gather(shape, axis, axis=0))
    own = op.Min(op.Shape(x, start=0, end=1), examples)
    places = op.Add(op.Reshape(starts, op.Concat(own, rest, one, axis=0)), op.Unsqueeze(indices, one))
    kept = op.Gather(op.Reshape(x, op.Concat(rest, after, axis=0)), places, axis=0)
    first = op.Max(op.Shape(x, start=0, end=1), examples)
    between = op.Slice(shape, one, axis, zero)
    result = op.Reshape(kept, op.Concat(first, between, op.Shape(indices, start=1), after, axis=0))
    return result  # noqa: RET504


@script(OPSET, default_opset=op)  # type: ignore[untyped-decorator]
def ScatterTokens(x: FLOAT, indices: INT64, valid: BOOL, length: INT64, fill: FLOAT) -> FLOAT:  # noqa: N802
    """x (B, K, *) at the positions indices (B, K) where valid (B, K), else `fill`: (B, length, *)."""
    one = op.Constant(value_ints=[1])
    examples, slots = op.Shape(x, start=0, end=1), op.Shape(x, start=1, end=2)
    # For each position the slot to read; slot K is a row of nothing but `fill`.
    numbers = op.Range(op.Constant(value_int=0), op.Squeeze(slots), op.Constant(value_int=1))
    empty = op.Expand(slots, op.Concat(examples, op.Reshape(length, one), axis=0))
    origin = op.ScatterElements(empty, indices, op.Where(valid, numbers, slots), axis=1)
    filled = op.Expand(fill, op.Concat(examples, one, op.Shape(x, start=2), axis=0))
    extended = op.Concat(x, filled, axis=1)
    result = op.GatherND(extended, op.Unsqueeze(origin, op.Constant(value_ints=[2])), batch_dims=1)
    return result  # noqa: RET504


_select_tokens = bare_node(
    "SelectTokens", {"priority": "T", "counts": INDICES}, {"indices": INDICES, "valid": FLAGS}, FLOATS
)
_gather = {"x": "T", "indices": INDICES}
_gather_tokens = bare_node("GatherTokens", _gather, {"kept": "T"}, ANY)
_gather_last_tokens = bare_node("GatherLastTokens", _gather, {"kept": "T"}, ANY)
_gather_tokens_along = bare_node("GatherTokensAlong", _gather, {"kept": "T"}, ANY, integers=["dim"])
_scatter_tokens = bare_node(
    "ScatterTokens", {"x": "T", "indices": INDICES, "valid": FLAGS, "length": INDICES, "fill": "T"}, {"all": "T"}, ANY
)


def translate_select_tokens(priority: FLOAT, counts: INT64) -> tuple[INT64, BOOL]:
    """The node of `select_tokens`."""
    chosen: tuple[INT64, BOOL] = _select_tokens(priority, counts)
    return chosen


def translate_gather_tokens(x: FLOAT, indices: INT64, dim: int) -> FLOAT:
    """The node of `gather_tokens` that suits the axis and the layout of x."""
    axis = dim + len(x.shape) if dim < 0 else dim
    if axis == 1 and x.shape[0] == indices.shape[0]:
        return _gather_tokens(x, indices)
    if axis == len(x.shape) - 1 and x.shape[0] != 1:
        return _gather_last_tokens(x, indices)
    return _gather_tokens_along(x, indices, dim=axis)


def translate_scatter_tokens(x: FLOAT, indices: INT64, valid: BOOL, length: INT64, fill: float) -> FLOAT:
    """The node of `scatter_tokens`."""
    constant = op.Constant(value=onnx_ir.tensor(fill, dtype=x.dtype))
    return _scatter_tokens(x, indices, valid, length, constant)
