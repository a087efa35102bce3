"""The custom operators in ONNX: their schemas, and their bodies in standard ONNX.

A model that uses an operator carries its body as a local function of the domain `gatefx`. A runtime that has a kernel
of that name runs the kernel; every other one inlines the body, which is the operator's specification.
Axes as in `schema.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...errors import missing_package
from .schema import gated_lora

try:
    import onnx
    from onnxscript import FLOAT, INT64, script
    from onnxscript.onnx_opset import opset18 as op
    from onnxscript.values import Op, Opset
except ImportError as error:
    raise missing_package("onnxscript", extra="onnxruntime", feature="Lowering to ONNX") from error

DOMAIN = "gatefx"
VERSION = 1
"""Version of the domain; a change of meaning of any body raises it."""

_FLOATS = ["tensor(float)", "tensor(double)", "tensor(float16)", "tensor(bfloat16)"]


@script(Opset(DOMAIN, VERSION), default_opset=op)  # type: ignore[untyped-decorator]
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


def _gated_lora_schema() -> onnx.defs.OpSchema:
    parameter = onnx.defs.OpSchema.FormalParameter
    tensors = ["base", "x", "lora_a", "lora_b"]
    return onnx.defs.OpSchema(
        "GatedLora",
        DOMAIN,
        VERSION,
        inputs=[
            *(parameter(name, "T") for name in tensors),
            parameter("indices", "tensor(int64)"),
            parameter("scale", "T"),
        ],
        outputs=[parameter("updated", "T")],
        type_constraints=[("T", _FLOATS, "The floating-point type of the layer.")],
    )


_gated_lora_node = Op(Opset(DOMAIN, VERSION), "GatedLora", _gated_lora_schema())


def _translate_gated_lora(base: FLOAT, x: FLOAT, lora_a: FLOAT, lora_b: FLOAT, indices: INT64, scale: FLOAT) -> FLOAT:
    # A bare node: the exporter inlines every function that it knows the body of, so the body joins the model later.
    return _gated_lora_node(base, x, lora_a, lora_b, indices, scale)


def translations() -> Mapping[Callable[..., Any], Callable[..., Any]]:
    """For each custom torch operator, what writes its ONNX node while torch.onnx translates a graph."""
    return {gated_lora._opoverload: _translate_gated_lora}


def function_protos(opset: int) -> Mapping[str, onnx.FunctionProto]:
    """The bodies by operator name, for a model that imports standard ONNX at `opset` (18 or later).

    The operators used mean the same in every such opset; some runtimes want function and model to name the same one.
    """
    protos = {}
    for function in (GatedLora,):
        proto = function.to_function_proto()
        for needed in proto.opset_import:
            needed.version = opset if needed.domain == "" else needed.version
        protos[proto.name] = proto
    return protos
