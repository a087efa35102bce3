"""`TokenGatedLora` as one plugin: the update of each token, measured and added where it is large enough.

    base (*, d_out), x (*, d_in), A (r, d_in), B (d_out, r), gram (r, r), threshold (), scale () ─▶ updated (*, d_out)

One kernel does it all: the size of an update follows from its r numbers and the Gram matrix, so a tile whose tokens all
skip never reads B, and no mask over tokens is ever written. Norms are float32 whatever the type. Grid: tiles of tokens.
"""

# TensorRT reads the annotations themselves, so they stay objects: no `from __future__ import annotations`.
# mypy: disable-error-code="untyped-decorator, no-untyped-def"

import tensorrt.plugin as trtp

from .kernels import Kernels
from .launch import FLOATS, NAMESPACE, check_one_type, count, kernel_for, launched, size

OPERATOR = "TokenGatedLora"
_NAME = f"{NAMESPACE}::{OPERATOR}"


def register(kernels: Kernels) -> None:
    """Register the plugin with TensorRT, once a process."""

    @trtp.register(_NAME)
    def describe(
        base: trtp.TensorDesc,
        x: trtp.TensorDesc,
        lora_a: trtp.TensorDesc,
        lora_b: trtp.TensorDesc,
        gram: trtp.TensorDesc,
        threshold: trtp.TensorDesc,
        scale: trtp.TensorDesc,
    ) -> trtp.TensorDesc:
        check_one_type(OPERATOR, base, x, lora_a, lora_b, gram, threshold, scale)
        return base.like()

    @trtp.autotune(_NAME)
    def types(base, x, lora_a, lora_b, gram, threshold, scale, outputs) -> list[trtp.AutoTuneCombination]:
        return [trtp.AutoTuneCombination(", ".join([FLOATS] * 8), "LINEAR")]

    @trtp.aot_impl(_NAME)
    def launch(
        base, x, lora_a, lora_b, gram, threshold, scale, outputs, tactic
    ) -> tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs]:
        kernel = kernel_for(kernels, OPERATOR, x, (size(x, -1), size(base, -1), size(lora_a, 0)))
        *leading, _features = base.shape_expr
        tokens = count(leading)
        return launched(kernels, kernel, (trtp.cdiv(tokens, kernel.rows), 1), tokens)
