"""`RoutedRows` as one plugin: each token through the weight that it chose, tokens of one weight side by side.

    x (*, d_in), weight0, weight1 (d_out, d_in), bias (d_out,), choice (*), order (N,) ─▶ routed (*, d_out)

`RoutedLinear` needs an order of its N tokens before it can multiply. Finding it (a cumulative sum and a scatter over N
whole numbers) stays with TensorRT's own layers, and this plugin is the product: a block that found the order by itself
would read all N choices again. Grid: tiles of tokens × tiles of output features.
"""

# TensorRT reads the annotations themselves, so they stay objects: no `from __future__ import annotations`.
# mypy: disable-error-code="untyped-decorator, no-untyped-def"

import tensorrt.plugin as trtp

from .kernels import Kernels
from .launch import FLOATS, NAMESPACE, check_one_type, count, kernel_for, launched, size

OPERATOR = "RoutedRows"
_NAME = f"{NAMESPACE}::{OPERATOR}"


def register(kernels: Kernels) -> None:
    """Register the plugin with TensorRT, once a process."""

    @trtp.register(_NAME)
    def describe(
        x: trtp.TensorDesc,
        weight0: trtp.TensorDesc,
        weight1: trtp.TensorDesc,
        bias: trtp.TensorDesc,
        choice: trtp.TensorDesc,
        order: trtp.TensorDesc,
    ) -> trtp.TensorDesc:
        check_one_type(OPERATOR, x, weight0, weight1, bias)
        routed = x.like()
        routed.shape_expr[x.ndim - 1] = weight0.shape_expr[0]
        return routed

    @trtp.autotune(_NAME)
    def types(x, weight0, weight1, bias, choice, order, outputs) -> list[trtp.AutoTuneCombination]:
        return [trtp.AutoTuneCombination(", ".join([*[FLOATS] * 4, "BOOL", "INT64", FLOATS]), "LINEAR")]

    @trtp.aot_impl(_NAME)
    def launch(
        x, weight0, weight1, bias, choice, order, outputs, tactic
    ) -> tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs]:
        d_out = size(weight0, 0)
        kernel = kernel_for(kernels, OPERATOR, x, (size(x, -1), d_out, 0))
        *leading, _features = x.shape_expr
        tokens = count(leading)
        grid = trtp.cdiv(tokens, kernel.rows), -(-d_out // kernel.columns)
        return launched(kernels, kernel, grid, tokens)
