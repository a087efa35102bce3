"""The custom operators of gatefx: signature, shapes and gradient. Only importing this module defines them.

Axes: B examples, * any number of middle axes (none for a pooled state, T for tokens), d_in and d_out features,
r rank directions of the adapter, K the most active directions of any example in the batch (0 <= K <= r).
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from .argument_checks import misfit, sizes_agree
from .cpu import gathered_gated_lora
from .cuda import cuda_gated_lora

NAMESPACE = "gatefx"
MOST_RANK = 1024
"""Of adapters that the operators take, whichever kernel runs them; passes leave larger ones masked."""


class GatedLoraContext(Protocol):
    """What the forward leaves for the backward of `gated_lora`."""

    saved_tensors: tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
    needs_input_grad: tuple[bool, ...]

    def save_for_backward(self, *tensors: Tensor) -> None:
        """Keep `tensors` until the backward has run."""


@torch.library.custom_op(f"{NAMESPACE}::gated_lora", mutates_args=())
def gated_lora(base: Tensor, x: Tensor, lora_a: Tensor, lora_b: Tensor, indices: Tensor, scale: Tensor) -> Tensor:
    """`base + scale * B[:, idx] A[idx, :] x`, example by example: only the listed rank directions are computed.

    Args:
        base: (B, *, d_out) what the frozen layer answers.
        x: (B, *, d_in) what the frozen layer read.
        lora_a: (r, d_in) down-projection A, in PEFT's order.
        lora_b: (d_out, r) up-projection B, in PEFT's order.
        indices: (B, r) int64. Row b lists the distinct directions that are active for example b, first; the rest
            is -1. Examples may have different counts, also none. The order and range of the values are the caller's
            promise: looking at them would cost a pass over the batch at every site.
        scale: () the adapter's alpha / r (a tensor, so that it changes without a new graph).

    Returns:
        (B, *, d_out), of the common dtype.

    Raises:
        InputError: shapes or dtypes that do not fit together.
    """
    _check_shapes(base, x, lora_a, lora_b, indices, scale)
    return gathered_gated_lora(base, x, lora_a, lora_b, indices, scale)


@gated_lora.register_kernel("cuda")
def _gated_lora_on_cuda(
    base: Tensor, x: Tensor, lora_a: Tensor, lora_b: Tensor, indices: Tensor, scale: Tensor
) -> Tensor:
    _check_shapes(base, x, lora_a, lora_b, indices, scale)
    return cuda_gated_lora(base, x, lora_a, lora_b, indices, scale)


@gated_lora.register_fake
def _gated_lora_fake(base: Tensor, x: Tensor, lora_a: Tensor, lora_b: Tensor, indices: Tensor, scale: Tensor) -> Tensor:
    _check_shapes(base, x, lora_a, lora_b, indices, scale)
    return base.new_empty(base.shape)


def _keep_for_backward(
    ctx: GatedLoraContext,
    inputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor],
    output: Tensor,  # noqa: ARG001  (torch calls this by keyword)
) -> None:
    ctx.save_for_backward(*inputs[1:])


def _gated_lora_backward(ctx: GatedLoraContext, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients through the dense mask: with v = scale * m * (A x), y = base + B v.

    All r directions take part, so that no size depends on the data and the backward can itself be compiled.
    """
    x, lora_a, lora_b, indices, scale = ctx.saved_tensors
    mask = active_mask(indices, x.dtype).view(indices.shape[0], *(1,) * (x.dim() - 2), indices.shape[1])
    down = mask * (x @ lora_a.t())
    grad_v = grad @ lora_b
    grad_down = scale * mask * grad_v
    needs = ctx.needs_input_grad
    return (
        grad if needs[0] else None,
        grad_down @ lora_a if needs[1] else None,
        grad_down.flatten(0, -2).t() @ x.flatten(0, -2) if needs[2] else None,
        grad.flatten(0, -2).t() @ (scale * down).flatten(0, -2) if needs[3] else None,
        None,
        (down * grad_v).sum() if needs[5] else None,
    )


gated_lora.register_autograd(_gated_lora_backward, setup_context=_keep_for_backward)


def active_mask(indices: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, r) 1 where a direction is listed in `indices` (B, r), else 0."""
    examples, rank = indices.shape
    # Inactive entries are written to a spare column, which is then cut off.
    columns = torch.where(indices >= 0, indices, rank)
    return torch.zeros(examples, rank + 1, dtype=dtype, device=indices.device).scatter(1, columns, 1)[:, :rank]


def _check_shapes(base: Tensor, x: Tensor, lora_a: Tensor, lora_b: Tensor, indices: Tensor, scale: Tensor) -> None:
    tensors = {"base": base, "x": x, "A": lora_a, "B": lora_b, "indices": indices, "scale": scale}
    floats = {tensor.dtype for name, tensor in tensors.items() if name != "indices"}
    ranks_fit = base.dim() == x.dim() > 1 and (lora_a.dim(), lora_b.dim(), indices.dim(), scale.dim()) == (2, 2, 2, 0)
    types_fit = len(floats) == 1 and base.is_floating_point() and indices.dtype == torch.int64
    pairs = [
        *zip(base.shape[:-1], x.shape[:-1], strict=False),
        *zip(x.shape[-1:], lora_a.shape[1:], strict=False),
        *zip(base.shape[-1:], lora_b.shape, strict=False),
        *zip(lora_a.shape, lora_b.shape[1:], strict=False),
        *zip(lora_a.shape, indices.shape[1:], strict=False),
        *zip(base.shape, indices.shape[:1], strict=False),
    ]
    if not ranks_fit or not types_fit or not sizes_agree(pairs):
        raise misfit(
            "gated_lora",
            tensors,
            "base (B, *, d_out), x (B, *, d_in), A (r, d_in), B (d_out, r), indices (B, r) int64, scale ()",
        )
