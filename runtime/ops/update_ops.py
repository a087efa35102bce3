"""The operators that decide per token about an adapter's update: skip it, or take one of two merged weights.

Axes: B examples, * any middle axes (none for a pooled state, T for tokens), d_in and d_out features, r rank directions.

    token_gated_lora   base + s·B u where |s|·√(uᵀ G u) ≥ τ·‖base‖, base elsewhere; u = A x, G = BᵀB   (TS-PEFT)
    routed_linear      W1 x + b where choice, W0 x + b elsewhere                                       (GateRA)

Only importing this module defines the operators.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from .argument_checks import misfit, sizes_agree
from .cpu_updates import routed_gradients, routed_rows, skipping_lora, tokens_taking
from .cuda import cuda_routed_linear, cuda_token_gated_lora
from .schema import NAMESPACE


class UpdateContext(Protocol):
    """What the forward leaves for the backward of either operator."""

    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]

    def save_for_backward(self, *tensors: Tensor) -> None:
        """Keep `tensors` until the backward has run."""


@torch.library.custom_op(f"{NAMESPACE}::token_gated_lora", mutates_args=())
def token_gated_lora(  # noqa: PLR0917  # tensors, in the order of the formula
    base: Tensor, x: Tensor, lora_a: Tensor, lora_b: Tensor, gram: Tensor, threshold: Tensor, scale: Tensor
) -> Tensor:
    """`base + 1[r >= τ] * scale * B A x` token by token, where r = ‖scale * B A x‖ / ‖base‖ (TS-PEFT, deployed).

    The norm needs u = A x and G = BᵀB only, so the decision is exact before B is read; tokens that skip never read it.

    Args:
        base: (B, *, d_out) what the frozen layer answers.
        x: (B, *, d_in) what the frozen layer read.
        lora_a: (r, d_in) A, in PEFT's order; lora_b: (d_out, r) B.
        gram: (r, r) BᵀB.
        threshold: () τ; 0 lets every token take the update, also where base is 0.
        scale: () the adapter's alpha / r.

    Returns:
        (B, *, d_out), of the common dtype. No gradient passes through the decision.

    Raises:
        InputError: shapes or dtypes that do not fit together.
    """
    _check_lora(base, x, lora_a, lora_b, gram, threshold, scale)
    return skipping_lora(base, x, lora_a, lora_b, gram, threshold, scale)


@token_gated_lora.register_kernel("cuda")
def _token_gated_lora_on_cuda(  # noqa: PLR0917
    base: Tensor, x: Tensor, lora_a: Tensor, lora_b: Tensor, gram: Tensor, threshold: Tensor, scale: Tensor
) -> Tensor:
    _check_lora(base, x, lora_a, lora_b, gram, threshold, scale)
    return cuda_token_gated_lora(base, x, lora_a, lora_b, gram, threshold, scale)


@token_gated_lora.register_fake
def _token_gated_lora_fake(  # noqa: PLR0917
    base: Tensor, x: Tensor, lora_a: Tensor, lora_b: Tensor, gram: Tensor, threshold: Tensor, scale: Tensor
) -> Tensor:
    _check_lora(base, x, lora_a, lora_b, gram, threshold, scale)
    return base.new_empty(base.shape)


def _keep_for_lora(ctx: UpdateContext, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ARG001
    ctx.save_for_backward(*inputs)


def _token_gated_lora_backward(ctx: UpdateContext, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of the dense form with its 0/1 mask m: y = base + s * m * (A x) Bᵀ."""
    base, x, lora_a, lora_b, gram, threshold, scale = ctx.saved_tensors
    down = x @ lora_a.t()
    mask = tokens_taking(base, down, gram, threshold, scale).to(x.dtype).unsqueeze(-1)
    needs, taken = ctx.needs_input_grad, mask * down
    grad_v = grad @ lora_b
    grad_down = scale * mask * grad_v
    return (
        grad if needs[0] else None,
        grad_down @ lora_a if needs[1] else None,
        grad_down.flatten(0, -2).t() @ x.flatten(0, -2) if needs[2] else None,
        scale * (grad.flatten(0, -2).t() @ taken.flatten(0, -2)) if needs[3] else None,
        None,
        None,
        (taken * grad_v).sum() if needs[6] else None,
    )


token_gated_lora.register_autograd(_token_gated_lora_backward, setup_context=_keep_for_lora)


@torch.library.custom_op(f"{NAMESPACE}::routed_linear", mutates_args=())
def routed_linear(x: Tensor, weight0: Tensor, weight1: Tensor, bias: Tensor | None, choice: Tensor) -> Tensor:
    """`weight1 x + bias` where `choice`, `weight0 x + bias` elsewhere: one product a token (GateRA, deployed).

    Args:
        x: (B, *, d_in); weight0, weight1: (d_out, d_in); bias: (d_out,) or None.
        choice: (B, *) bool.

    Returns:
        (B, *, d_out), of the common dtype.

    Raises:
        InputError: shapes or dtypes that do not fit together.
    """
    _check_routed(x, weight0, weight1, bias, choice)
    return routed_rows(x, weight0, weight1, bias, choice)


@routed_linear.register_kernel("cuda")
def _routed_linear_on_cuda(x: Tensor, weight0: Tensor, weight1: Tensor, bias: Tensor | None, choice: Tensor) -> Tensor:
    _check_routed(x, weight0, weight1, bias, choice)
    return cuda_routed_linear(x, weight0, weight1, bias, choice)


@routed_linear.register_fake
def _routed_linear_fake(x: Tensor, weight0: Tensor, weight1: Tensor, bias: Tensor | None, choice: Tensor) -> Tensor:
    _check_routed(x, weight0, weight1, bias, choice)
    return x.new_empty((*x.shape[:-1], weight0.shape[0]))


def _keep_for_routed(
    ctx: UpdateContext,
    inputs: tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor],
    output: Tensor,  # noqa: ARG001  (torch calls this by keyword)
) -> None:
    x, weight0, weight1, _, choice = inputs
    ctx.save_for_backward(x, weight0, weight1, choice)


def _routed_linear_backward(ctx: UpdateContext, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight0, weight1, choice = ctx.saved_tensors
    found = routed_gradients(grad, x, weight0, weight1, choice)
    return (*(value if needed else None for value, needed in zip(found, ctx.needs_input_grad, strict=False)), None)


routed_linear.register_autograd(_routed_linear_backward, setup_context=_keep_for_routed)


def _check_lora(  # noqa: PLR0917
    base: Tensor, x: Tensor, lora_a: Tensor, lora_b: Tensor, gram: Tensor, threshold: Tensor, scale: Tensor
) -> None:
    tensors = {"base": base, "x": x, "A": lora_a, "B": lora_b, "G": gram, "threshold": threshold, "scale": scale}
    matrices = (lora_a.dim(), lora_b.dim(), gram.dim(), threshold.dim(), scale.dim())
    ranks_fit = base.dim() == x.dim() > 1 and matrices == (2, 2, 2, 0, 0)
    types_fit = len({tensor.dtype for tensor in tensors.values()}) == 1 and base.is_floating_point()
    pairs = [
        *zip(base.shape[:-1], x.shape[:-1], strict=False),
        *zip(x.shape[-1:], lora_a.shape[1:], strict=False),
        *zip(base.shape[-1:], lora_b.shape, strict=False),
        *zip(lora_a.shape, lora_b.shape[1:], strict=False),
        *((size, rank) for size, rank in zip(gram.shape, (*lora_a.shape[:1], *lora_a.shape[:1]), strict=False)),
    ]
    if not ranks_fit or not types_fit or not sizes_agree(pairs):
        raise misfit(
            "token_gated_lora",
            tensors,
            "base (B, *, d_out), x (B, *, d_in), A (r, d_in), B (d_out, r), G (r, r), threshold (), scale ()",
        )


def _check_routed(x: Tensor, weight0: Tensor, weight1: Tensor, bias: Tensor | None, choice: Tensor) -> None:
    tensors = {"x": x, "weight0": weight0, "weight1": weight1, "choice": choice}
    if bias is not None:
        tensors["bias"] = bias
    ranks_fit = x.dim() > 1 and weight0.dim() == weight1.dim() == 2 and choice.dim() == x.dim() - 1  # noqa: PLR2004
    ranks_fit = ranks_fit and (bias is None or bias.dim() == 1)
    floats = {tensor.dtype for name, tensor in tensors.items() if name != "choice"}
    types_fit = len(floats) == 1 and x.is_floating_point() and choice.dtype == torch.bool
    pairs = [
        *zip(choice.shape, x.shape[:-1], strict=False),
        *zip(x.shape[-1:], weight0.shape[1:], strict=False),
        *zip(weight0.shape, weight1.shape, strict=False),
        *(zip(weight0.shape, bias.shape, strict=False) if bias is not None else ()),
    ]
    if not ranks_fit or not types_fit or not sizes_agree(pairs):
        raise misfit(
            "routed_linear",
            tensors,
            "x (B, *, d_in), weight0 and weight1 (d_out, d_in), bias (d_out,) or None, choice (B, *) bool",
        )
