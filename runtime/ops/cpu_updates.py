"""The operators that decide per token about an adapter's update, in plain torch. Axes as in `update_ops.py`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_SINGLE = 4
"""Bytes of a float32."""


def tokens_taking(base: Tensor, down: Tensor, gram: Tensor, threshold: Tensor, scale: Tensor) -> Tensor:
    """(B, *) bool: which tokens take the update, from u = `down` (B, *, r) alone: |s|·√(uᵀ G u) ≥ τ·‖base‖₂."""
    if base.element_size() < _SINGLE:  # squares of a float16 are soon infinite
        base, down, gram, threshold, scale = (tensor.float() for tensor in (base, down, gram, threshold, scale))
    # Rounding may leave the form of a singular G a little below zero.
    size = scale.abs() * ((down @ gram) * down).sum(-1).clamp_min(0).sqrt()
    smallest: Tensor = threshold * base.norm(dim=-1)
    return size >= smallest


def skipping_lora(  # noqa: PLR0917  # the operator's tensors, in order
    base: Tensor, x: Tensor, lora_a: Tensor, lora_b: Tensor, gram: Tensor, threshold: Tensor, scale: Tensor
) -> Tensor:
    """`token_gated_lora` (see `update_ops.py`): B is read for the tokens that take the update; never aliases base."""
    flat = base.reshape(-1, base.shape[-1])
    down = x.reshape(-1, x.shape[-1]) @ lora_a.t()
    taking = tokens_taking(flat, down, gram, threshold, scale)
    rows = taking.nonzero().flatten()
    if rows.shape[0] == flat.shape[0]:
        return flat.addmm(down * scale, lora_b.t()).view(base.shape)
    result = flat.clone()
    if rows.shape[0]:
        result.index_copy_(0, rows, flat[rows].addmm(down[rows] * scale, lora_b.t()))
    return result.view(base.shape)


def routed_rows(x: Tensor, weight0: Tensor, weight1: Tensor, bias: Tensor | None, choice: Tensor) -> Tensor:
    """`routed_linear` (see `update_ops.py`): the tokens of each weight are gathered, multiplied once and put back."""
    flat, chosen = x.reshape(-1, x.shape[-1]), choice.reshape(-1)
    ones = chosen.nonzero().flatten()
    shape = (*x.shape[:-1], weight0.shape[0])
    if ones.shape[0] in (0, flat.shape[0]):
        return functional.linear(flat, weight1 if ones.shape[0] else weight0, bias).view(shape)
    result = x.new_empty(flat.shape[0], weight0.shape[0])
    for rows, weight in ((chosen.logical_not().nonzero().flatten(), weight0), (ones, weight1)):
        result.index_copy_(0, rows, functional.linear(flat[rows], weight, bias))
    return result.view(shape)


def routed_gradients(
    grad: Tensor, x: Tensor, weight0: Tensor, weight1: Tensor, choice: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `routed_linear` in x, weight0, weight1 and bias, dense, so that no size depends on the data."""
    picked = choice.unsqueeze(-1)
    to_one, to_zero = torch.where(picked, grad, 0), torch.where(picked, 0, grad)
    flat = x.flatten(0, -2)
    return (
        to_zero @ weight0 + to_one @ weight1,
        to_zero.flatten(0, -2).t() @ flat,
        to_one.flatten(0, -2).t() @ flat,
        grad.flatten(0, -2).sum(0),
    )
