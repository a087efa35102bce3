"""The operators on updates in ONNX: bodies in standard ONNX, and translations. Axes as in `update_ops.py`."""

from __future__ import annotations

from onnxscript import BOOL, FLOAT, INT64, script
from onnxscript.onnx_opset import opset18 as op

from .onnx_domain import FLAGS, FLOATS, OPSET, bare_node


@script(OPSET, default_opset=op)  # type: ignore[untyped-decorator]
def TokenGatedLora(  # noqa: N802, PLR0917  (the ONNX operator's name and inputs)
    base: FLOAT, x: FLOAT, lora_a: FLOAT, lora_b: FLOAT, gram: FLOAT, threshold: FLOAT, scale: FLOAT
) -> FLOAT:
    """base + scale * B A x where |scale| * sqrt(u' G u) >= threshold * norm(base); u = A x."""
    last = op.Constant(value_ints=[-1])
    down = op.MatMul(x, op.Transpose(lora_a, perm=[1, 0]))
    form = op.ReduceSum(op.Mul(op.MatMul(down, gram), down), last, keepdims=1)
    size = op.Mul(op.Abs(scale), op.Sqrt(op.Max(form, op.CastLike(op.Constant(value_float=0.0), form))))
    taking = op.GreaterOrEqual(size, op.Mul(threshold, op.ReduceL2(base, last, keepdims=1)))
    # In standard ONNX a product of r columns over all tokens is cheaper than gathering those that take the update.
    weight = op.Mul(op.CastLike(taking, scale), scale)
    updated = op.Add(base, op.MatMul(op.Mul(down, weight), op.Transpose(lora_b, perm=[1, 0])))
    return updated  # noqa: RET504  (names the function's output)


@script(OPSET, default_opset=op)  # type: ignore[untyped-decorator]
def RoutedRows(  # noqa: N802
    x: FLOAT, weight0: FLOAT, weight1: FLOAT, bias: FLOAT, choice: BOOL, order: INT64
) -> FLOAT:
    """RoutedLinear whose order (N,) of the N tokens is known: those of weight0 first, then those of weight1."""
    zero, rest = op.Constant(value_ints=[0]), op.Constant(value_ints=[-1])
    flat = op.Reshape(x, op.Concat(rest, op.Shape(x, start=-1), axis=0))
    chosen = op.Reshape(choice, rest)
    numbers = op.Range(op.Constant(value_int=0), op.Squeeze(op.Shape(chosen)), op.Constant(value_int=1))
    zeros = op.Sub(op.Shape(chosen), op.ReduceSum(op.Cast(chosen, to=7), keepdims=1))
    sorted_rows = op.Gather(flat, order, axis=0)
    first = op.MatMul(op.Slice(sorted_rows, zero, zeros, zero), op.Transpose(weight0, perm=[1, 0]))
    second = op.MatMul(op.Slice(sorted_rows, zeros, op.Shape(chosen), zero), op.Transpose(weight1, perm=[1, 0]))
    places = op.ScatterElements(numbers, order, numbers, axis=0)
    answers = op.Add(op.Gather(op.Concat(first, second, axis=0), places, axis=0), bias)
    shape = op.Concat(op.Shape(x, end=-1), op.Shape(weight0, start=0, end=1), axis=0)
    routed = op.Reshape(answers, shape)
    return routed  # noqa: RET504


@script(OPSET, default_opset=op)  # type: ignore[untyped-decorator]
def RoutedLinear(x: FLOAT, weight0: FLOAT, weight1: FLOAT, bias: FLOAT, choice: BOOL) -> FLOAT:  # noqa: N802
    """weight1 x + bias where choice, weight0 x + bias elsewhere: each token passes through one product."""
    chosen = op.Reshape(choice, op.Constant(value_ints=[-1]))
    # The tokens of weight0 first, then those of weight1, each in order; `places` says where each one goes. Counted
    # and not searched for: some engines have no NonZero.
    numbers = op.Range(op.Constant(value_int=0), op.Squeeze(op.Shape(chosen)), op.Constant(value_int=1))
    ones = op.CumSum(op.Cast(chosen, to=7), op.Constant(value_int=0))
    zeros = op.Sub(op.Shape(chosen), op.ReduceSum(op.Cast(chosen, to=7), keepdims=1))
    before = op.Sub(op.Add(zeros, ones), op.Constant(value_ints=[1]))
    places = op.Where(chosen, before, op.Sub(numbers, ones))
    order = op.ScatterElements(numbers, places, numbers, axis=0)
    routed = RoutedRows(x, weight0, weight1, bias, choice, order)
    return routed  # noqa: RET504


_token_gated_lora = bare_node(
    "TokenGatedLora",
    dict.fromkeys(("base", "x", "lora_a", "lora_b", "gram", "threshold", "scale"), "T"),
    {"updated": "T"},
    FLOATS,
)
_routed_linear = bare_node(
    "RoutedLinear",
    {"x": "T", "weight0": "T", "weight1": "T", "bias": "T", "choice": FLAGS},
    {"routed": "T"},
    FLOATS,
)


def translate_token_gated_lora(  # noqa: PLR0917  # the operator's tensors, in order
    base: FLOAT, x: FLOAT, lora_a: FLOAT, lora_b: FLOAT, gram: FLOAT, threshold: FLOAT, scale: FLOAT
) -> FLOAT:
    """The node of `token_gated_lora`."""
    return _token_gated_lora(base, x, lora_a, lora_b, gram, threshold, scale)


def translate_routed_linear(x: FLOAT, weight0: FLOAT, weight1: FLOAT, bias: FLOAT | None, choice: BOOL) -> FLOAT:
    """The node of `routed_linear`; a layer without a bias gets one of zeros."""
    if bias is None:
        bias = op.CastLike(op.Expand(op.Constant(value_float=0.0), op.Shape(weight0, start=0, end=1)), x)
    return _routed_linear(x, weight0, weight1, bias, choice)
