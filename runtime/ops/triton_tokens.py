"""`gather_tokens` and `scatter_tokens` on a GPU: one kernel copies whole rows, or writes a fill where no row is named.

    gather    out[i] = x[rows[i]]
    scatter   out[i] = x[rows[i]] where a slot came to position i, else fill; rows[i] = -1 says that none did

Axes as in `token_ops.py`.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .cpu_tokens import flat_rows, gathered_shape

_ROWS, _WIDTH = 8, 128


@triton.jit
def copy_rows_kernel(x_ptr, rows_ptr, fill_ptr, count, y_ptr,
                     FEATURES: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr):  # fmt: skip
    """Grid: (ceil(count / ROWS), ceil(FEATURES / WIDTH)). Inputs, then sizes, then the output."""
    place = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    feature = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    live = place < count
    row = tl.load(rows_ptr + place, mask=live, other=-1)
    inside = live[:, None] & (feature < FEATURES)[None, :]
    named = (row >= 0)[:, None]
    value = tl.load(x_ptr + row[:, None] * FEATURES + feature[None, :], mask=inside & named, other=0)
    value = tl.where(named, value, tl.load(fill_ptr))
    tl.store(y_ptr + place[:, None] * FEATURES + feature[None, :], value, mask=inside)


def launch_gather_tokens(x: Tensor, indices: Tensor, dim: int) -> Tensor:
    """`gather_tokens` (see `token_ops.py`) in any type, dim >= 1."""
    rows = flat_rows(x.shape, indices, dim).reshape(-1)
    return _copied(x, rows, x.new_zeros(()), gathered_shape(x.shape, indices.shape, dim), math.prod(x.shape[dim + 1 :]))


def launch_scatter_tokens(x: Tensor, indices: Tensor, valid: Tensor, length: int, fill: float) -> Tensor:
    """`scatter_tokens` (see `token_ops.py`) in any type."""
    examples, kept = indices.shape
    slots = torch.arange(examples * kept, device=x.device).view(examples, kept)
    origin = torch.full((examples, length), -1, device=x.device, dtype=torch.int64)
    origin.scatter_(1, indices, torch.where(valid, slots, -1))
    shape = (examples, length, *x.shape[2:])
    return _copied(x, origin.view(-1), x.new_full((), fill), shape, math.prod(x.shape[2:]))


def _copied(x: Tensor, rows: Tensor, fill: Tensor, shape: tuple[int, ...], features: int) -> Tensor:
    result = x.new_empty(shape)
    if result.numel() == 0:
        return result
    # A tile of one column would waste all but one lane of each row: then many rows share a program instead.
    width = min(_WIDTH, triton.next_power_of_2(features))
    height = _ROWS * _WIDTH // width
    grid = (triton.cdiv(rows.numel(), height), triton.cdiv(features, width))
    given, answer, value = (t.view(torch.uint8) if t.dtype == torch.bool else t for t in (x.contiguous(), result, fill))
    copy_rows_kernel[grid](given, rows, value, rows.numel(), answer, FEATURES=features, ROWS=height, WIDTH=width)
    return result
