"""`GatedLora` as one plugin: down-projection, gate and up-projection of one kernel, which adds to the layer's answer.

    base (B, *, d_out), x (B, *, d_in), A (r, d_in), B (d_out, r), indices (B, r), scale () ─▶ updated (B, *, d_out)

One kernel does it all: a block reads only the rows of A and B that its example's gate leaves open, which no layer of
TensorRT can, and the r numbers between the two products stay in registers. Grid: tiles of tokens × examples.
"""

# TensorRT reads the annotations themselves, so they stay objects: no `from __future__ import annotations`.
# mypy: disable-error-code="untyped-decorator, no-untyped-def"

import tensorrt.plugin as trtp

from .kernels import Kernels
from .launch import FLOATS, NAMESPACE, check_one_type, count, kernel_for, launched, size

OPERATOR = "GatedLora"
_NAME = f"{NAMESPACE}::{OPERATOR}"


def register(kernels: Kernels) -> None:
    """Register the plugin with TensorRT, once a process."""

    @trtp.register(_NAME)
    def describe(
        base: trtp.TensorDesc,
        x: trtp.TensorDesc,
        lora_a: trtp.TensorDesc,
        lora_b: trtp.TensorDesc,
        indices: trtp.TensorDesc,
        scale: trtp.TensorDesc,
    ) -> trtp.TensorDesc:
        check_one_type(OPERATOR, base, x, lora_a, lora_b, scale)
        return base.like()

    @trtp.autotune(_NAME)
    def types(base, x, lora_a, lora_b, indices, scale, outputs) -> list[trtp.AutoTuneCombination]:
        return [trtp.AutoTuneCombination(", ".join([*[FLOATS] * 4, "INT64", FLOATS, FLOATS]), "LINEAR")]

    @trtp.aot_impl(_NAME)
    def launch(
        base, x, lora_a, lora_b, indices, scale, outputs, tactic
    ) -> tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs]:
        kernel = kernel_for(kernels, OPERATOR, x, (size(x, -1), size(base, -1), size(lora_a, 0)))
        examples, *middle, _features = base.shape_expr
        tokens = count(middle)
        return launched(kernels, kernel, (trtp.cdiv(tokens, kernel.rows), examples), tokens)
