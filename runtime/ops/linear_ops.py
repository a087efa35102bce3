"""A frozen layer and its adapter as one operator, so that a kernel adds the update before the answer is written.

Axes: B examples, * any middle axes (none for a pooled state, T for tokens), d_in and d_out features, r rank directions.

    gated_linear         gated_lora on top of W x + b        (CCM-LoRA)
    token_gated_linear   token_gated_lora on top of W x + b  (TS-PEFT)

They are made when a graph is lowered, so they have no gradient. Only importing this module defines them.
"""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor
from torch.nn import functional

from .argument_checks import misfit, sizes_agree
from .schema import NAMESPACE, gated_lora
from .update_ops import token_gated_lora


def _gated_linear(  # noqa: PLR0917  # tensors, in the order of the formula
    x: Tensor, weight: Tensor, bias: Tensor, lora_a: Tensor, lora_b: Tensor, indices: Tensor, scale: Tensor
) -> Tensor:
    """`W x + b + scale * B[:, idx] A[idx, :] x`, example by example.

    Args:
        x: (B, *, d_in); weight: (d_out, d_in); bias: (d_out,).
        lora_a: (r, d_in) A, in PEFT's order; lora_b: (d_out, r) B.
        indices: (B, r) int64, the directions of each example, as in `gated_lora`.
        scale: () the adapter's alpha / r.

    Returns:
        (B, *, d_out), of the common dtype.

    Raises:
        InputError: shapes or dtypes that do not fit together.
    """
    answer: Tensor = gated_lora(_layer(x, weight, bias), x, lora_a, lora_b, indices, scale)
    return answer


gated_linear = torch.library.custom_op(f"{NAMESPACE}::gated_linear", _gated_linear, mutates_args=())
# The composition says the shape too: its parts have fakes of their own.
gated_linear.register_fake(_gated_linear)


def _token_gated_linear(  # noqa: PLR0917
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    gram: Tensor,
    threshold: Tensor,
    scale: Tensor,
) -> Tensor:
    """`y + scale * B A x` for the tokens where the update is at least τ·‖y‖, y = W x + b elsewhere.

    Args:
        x: (B, *, d_in); weight: (d_out, d_in); bias: (d_out,).
        lora_a: (r, d_in) A, in PEFT's order; lora_b: (d_out, r) B; gram: (r, r) BᵀB.
        threshold: () τ; scale: () the adapter's alpha / r.

    Returns:
        (B, *, d_out), of the common dtype.

    Raises:
        InputError: shapes or dtypes that do not fit together.
    """
    answer: Tensor = token_gated_lora(_layer(x, weight, bias), x, lora_a, lora_b, gram, threshold, scale)
    return answer


token_gated_linear = torch.library.custom_op(f"{NAMESPACE}::token_gated_linear", _token_gated_linear, mutates_args=())
# The composition says the shape too: its parts have fakes of their own.
token_gated_linear.register_fake(_token_gated_linear)


def _layer(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """W x + b, or why these are no layer."""
    shapes_fit = x.dim() > 1 and weight.dim() == 2 and bias.dim() == 1  # noqa: PLR2004
    types_fit = x.dtype == weight.dtype == bias.dtype and x.is_floating_point()
    pairs = [*zip(x.shape[-1:], weight.shape[1:], strict=False), *zip(weight.shape[:1], bias.shape, strict=False)]
    if not shapes_fit or not types_fit or not sizes_agree(pairs):
        _refuse(x, weight, bias)
    return functional.linear(x, weight, bias)


def _refuse(x: Tensor, weight: Tensor, bias: Tensor) -> NoReturn:
    raise misfit(
        "An adapted layer",
        {"x": x, "weight": weight, "bias": bias},
        "x (B, *, d_in), weight (d_out, d_in), bias (d_out,), of one floating-point type",
    )
