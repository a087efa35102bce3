"""The token operators in plain torch: whole rows are copied, found by their place in the flattened batch.

Axes as in `token_ops.py`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

Shape = tuple[int, ...]
"""Sizes; in a trace some of them are symbols."""


def sorted_selection(priority: Tensor, counts: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """`select_tokens` (see `token_ops.py`) with K = `most`."""
    # Stable, so that of equal priorities the earlier position comes first.
    ranked = priority.sort(dim=1, descending=True, stable=True).indices[:, :most]
    positions, ranks = ranked.sort(dim=1)
    return positions, ranks < counts.unsqueeze(1)


def gathered_rows(x: Tensor, indices: Tensor, dim: int) -> Tensor:
    """`gather_tokens` (see `token_ops.py`), dim >= 1."""
    after = math.prod(x.shape[dim + 1 :])
    rows = flat_rows(x.shape, indices, dim)
    kept = x.reshape(-1, after).index_select(0, rows.flatten())
    return kept.view(gathered_shape(x.shape, indices.shape, dim))


def summed_rows(grad: Tensor, indices: Tensor, dim: int, shape: Shape) -> Tensor:
    """The transpose of `gathered_rows`: each row of `grad` is added to the row of `shape` that it was read from."""
    after = math.prod(shape[dim + 1 :])
    total = grad.new_zeros(math.prod(shape[: dim + 1]), after)
    rows = flat_rows(shape, indices, dim)
    return total.index_add(0, rows.flatten(), grad.reshape(-1, after)).view(shape)


def scattered_rows(x: Tensor, indices: Tensor, valid: Tensor, length: int, fill: float) -> Tensor:
    """`scatter_tokens` (see `token_ops.py`)."""
    shape = (x.shape[0], length, *x.shape[2:])
    after = math.prod(x.shape[2:])
    # Slots that are not valid have positions of their own too, where they write what is there already.
    mask = valid.view(*valid.shape, *(1,) * (x.dim() - 2))
    kept = torch.where(mask, x, torch.full((), fill, dtype=x.dtype, device=x.device))
    result = x.new_full((x.shape[0] * length, after), fill)
    rows = flat_rows(shape, indices, 1)
    return result.index_copy_(0, rows.flatten(), kept.reshape(-1, after)).view(shape)


def flat_rows(shape: Shape, indices: Tensor, dim: int) -> Tensor:
    """(B, c, P, K) where each kept row lies in x of `shape` (c*B, P..., T, ...) flattened to (c*B*P*T, ...)."""
    examples, kept = indices.shape
    before = math.prod(shape[1:dim])
    copies = 1 if is_shared(shape) else shape[0] // examples if examples else 1
    starts = torch.arange(shape[0] * before, device=indices.device) * shape[dim]
    starts = starts.view(1 if is_shared(shape) else examples, copies, before, 1)
    return starts + indices.view(examples, 1, 1, kept)


def gathered_shape(shape: Shape, indices_shape: Shape, dim: int) -> Shape:
    """The shape that gathering leaves of `shape`: K tokens instead of T, B examples where one stood for all."""
    first = indices_shape[0] if is_shared(shape) else shape[0]
    return (first, *shape[1:dim], indices_shape[1], *shape[dim + 1 :])


def is_shared(shape: Shape) -> bool:
    """Whether one row stands for every example. A size that may be another in the next run is a batch's, not one."""
    return statically_known_true(shape[0] == 1)
