"""`gated_lora` in ONNX: its body in standard ONNX, and its translation. Axes as in `schema.py`."""

from __future__ import annotations

from onnxscript import FLOAT, INT64, script
from onnxscript.onnx_opset import opset18 as op

from .onnx_domain import FLOATS, INDICES, OPSET, bare_node


@script(OPSET, default_opset=op)  # type: ignore[untyped-decorator]
def GatedLora(  # noqa: N802  (the ONNX operator's name)
    base: FLOAT, x: FLOAT, lora_a: FLOAT, lora_b: FLOAT, indices: INT64, scale: FLOAT
) -> FLOAT:
    """base + scale * B[:, idx] A[idx, :] x per example; -1 in indices means inactive, active ones come first."""
    zero = op.Constant(value_int=0)
    # At least one column, masked out if inactive: no runtime then meets a product over an empty axis.
    counts = op.ReduceSum(op.Cast(op.GreaterOrEqual(indices, zero), to=7), op.Constant(value_ints=[1]), keepdims=0)
    most = op.Max(op.ReduceMax(counts, keepdims=1), op.Constant(value_ints=[1]))
    listed = op.Slice(indices, op.Constant(value_ints=[0]), most, op.Constant(value_ints=[1]))
    chosen = op.Max(listed, zero)
    mask = op.CastLike(op.GreaterOrEqual(listed, zero), scale)
    weight = op.Unsqueeze(op.Mul(mask, scale), op.Constant(value_ints=[1]))
    # The middle axes, however many, become one axis for the two products.
    flat = op.Concat(op.Constant(value_ints=[0, -1]), op.Shape(lora_a, start=1), axis=0)
    factors_a = op.Transpose(op.Gather(lora_a, chosen, axis=0), perm=[0, 2, 1])
    factors_b = op.Gather(op.Transpose(lora_b, perm=[1, 0]), chosen, axis=0)
    down = op.MatMul(op.Reshape(x, flat), factors_a)
    update = op.MatMul(op.Mul(down, weight), factors_b)
    updated = op.Add(base, op.Reshape(update, op.Shape(base)))
    return updated  # noqa: RET504  (names the function's output)


_gated_lora = bare_node(
    "GatedLora",
    {"base": "T", "x": "T", "lora_a": "T", "lora_b": "T", "indices": INDICES, "scale": "T"},
    {"updated": "T"},
    FLOATS,
)


def translate_gated_lora(base: FLOAT, x: FLOAT, lora_a: FLOAT, lora_b: FLOAT, indices: INT64, scale: FLOAT) -> FLOAT:
    """The node of `gated_lora`."""
    return _gated_lora(base, x, lora_a, lora_b, indices, scale)
