"""`visible_keys` in ONNX: its body in standard ONNX, and its translation. Axes as in `visible_ops.py`."""

from __future__ import annotations

from onnxscript import BOOL, INT64, script
from onnxscript.onnx_opset import opset18 as op

from .onnx_domain import ANY, FLAGS, INDICES, OPSET, bare_node

_FAR = 2**62  # beyond every distance of two positions


@script(OPSET, default_opset=op)  # type: ignore[untyped-decorator]
def VisibleKeys(query_positions: INT64, key_positions: INT64, key_mask: INT64, window: INT64) -> BOOL:  # noqa: N802
    """(B, T), (B, N), (B, N), () → (B, 1, T, N): real keys, not later than the query, nearer than `window`."""
    queries = op.Unsqueeze(query_positions, op.Constant(value_ints=[1, 3]))
    keys = op.Unsqueeze(key_positions, op.Constant(value_ints=[1, 2]))
    real = op.Unsqueeze(op.Cast(key_mask, to=9), op.Constant(value_ints=[1, 2]))
    distance = op.Sub(queries, keys)
    near = op.And(op.GreaterOrEqual(distance, op.Constant(value_int=0)), op.Less(distance, window))
    seen = op.And(near, real)
    some = op.ReduceMax(op.Cast(seen, to=7), op.Constant(value_ints=[-1]), keepdims=1)
    visible = op.Or(seen, op.Equal(some, op.Constant(value_int=0)))
    return visible  # noqa: RET504  (names the function's output)


_visible_keys = bare_node(
    "VisibleKeys",
    {"query_positions": INDICES, "key_positions": INDICES, "key_mask": "T", "window": INDICES},
    {"visible": FLAGS},
    ANY,
)


def translate_visible_keys(query_positions: INT64, key_positions: INT64, key_mask: INT64, window: int) -> BOOL:
    """The node of `visible_keys`; without a window, one that is wider than any distance."""
    width = op.Constant(value_int=window if window > 0 else _FAR)
    return _visible_keys(query_positions, key_positions, key_mask, width)
