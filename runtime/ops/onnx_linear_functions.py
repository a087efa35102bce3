"""Layers with their adapters in ONNX, in terms of the operators on top of a layer. Axes as in `linear_ops.py`."""

from __future__ import annotations

from onnxscript import FLOAT, INT64, script
from onnxscript.onnx_opset import opset18 as op

from .onnx_domain import FLOATS, INDICES, OPSET, bare_node
from .onnx_rank_functions import GatedLora
from .onnx_update_functions import TokenGatedLora


@script(OPSET, default_opset=op)  # type: ignore[untyped-decorator]
def GatedLinear(  # noqa: N802, PLR0917  (the ONNX operator's name and inputs)
    x: FLOAT, weight: FLOAT, bias: FLOAT, lora_a: FLOAT, lora_b: FLOAT, indices: INT64, scale: FLOAT
) -> FLOAT:
    """GatedLora on top of W x + b."""
    base = op.Add(op.MatMul(x, op.Transpose(weight, perm=[1, 0])), bias)
    updated = GatedLora(base, x, lora_a, lora_b, indices, scale)
    return updated  # noqa: RET504  (names the function's output)


@script(OPSET, default_opset=op)  # type: ignore[untyped-decorator]
def TokenGatedLinear(  # noqa: N802, PLR0917
    x: FLOAT,
    weight: FLOAT,
    bias: FLOAT,
    lora_a: FLOAT,
    lora_b: FLOAT,
    gram: FLOAT,
    threshold: FLOAT,
    scale: FLOAT,
) -> FLOAT:
    """TokenGatedLora on top of W x + b."""
    base = op.Add(op.MatMul(x, op.Transpose(weight, perm=[1, 0])), bias)
    updated = TokenGatedLora(base, x, lora_a, lora_b, gram, threshold, scale)
    return updated  # noqa: RET504


_LAYER = dict.fromkeys(("x", "weight", "bias", "lora_a", "lora_b"), "T")
_gated_linear = bare_node("GatedLinear", {**_LAYER, "indices": INDICES, "scale": "T"}, {"updated": "T"}, FLOATS)
_token_gated_linear = bare_node(
    "TokenGatedLinear", {**_LAYER, **dict.fromkeys(("gram", "threshold", "scale"), "T")}, {"updated": "T"}, FLOATS
)


def translate_gated_linear(  # noqa: PLR0917  # the operator's tensors, in order
    x: FLOAT, weight: FLOAT, bias: FLOAT, lora_a: FLOAT, lora_b: FLOAT, indices: INT64, scale: FLOAT
) -> FLOAT:
    """The node of `gated_linear`."""
    return _gated_linear(x, weight, bias, lora_a, lora_b, indices, scale)


def translate_token_gated_linear(  # noqa: PLR0917
    x: FLOAT,
    weight: FLOAT,
    bias: FLOAT,
    lora_a: FLOAT,
    lora_b: FLOAT,
    gram: FLOAT,
    threshold: FLOAT,
    scale: FLOAT,
) -> FLOAT:
    """The node of `token_gated_linear`."""
    return _token_gated_linear(x, weight, bias, lora_a, lora_b, gram, threshold, scale)
