"""`routed_linear` on a GPU: the tokens of W0 are put before those of W1, so that all tiles but one read one weight.

    choice ─▶ order (a stable sort, no count leaves the device) ─▶ tile of tokens × tile of features: W0, W1 or both

Axes as in `update_ops.py`; N tokens in all.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_tiles import BLOCK_IN, BLOCK_OUT, BLOCK_ROWS, must_upcast, product


@triton.jit
def _rows_times(x_ptr, weight_ptr, row, live, feature, D_IN: tl.constexpr, D_OUT: tl.constexpr, UPCAST: tl.constexpr,
                ROWS: tl.constexpr, IN: tl.constexpr, OUT: tl.constexpr):  # fmt: skip
    """x[row] · Wᵀ on the features `feature`: (ROWS, OUT) float32."""
    total = tl.zeros((ROWS, OUT), tl.float32)
    for start in range(0, D_IN, IN):
        inner = start + tl.arange(0, IN)
        seen = inner < D_IN
        x = tl.load(x_ptr + row[:, None] * D_IN + inner[None, :], mask=live[:, None] & seen[None, :], other=0.0)
        w = tl.load(
            weight_ptr + feature[None, :] * D_IN + inner[:, None],
            mask=(feature < D_OUT)[None, :] & seen[:, None],
            other=0.0,
        )
        total += product(x, w, UPCAST)
    return total


@triton.jit
def routed_linear_kernel(
    x_ptr, weight0_ptr, weight1_ptr, bias_ptr, choice_ptr, order_ptr, tokens, y_ptr,
    D_IN: tl.constexpr, D_OUT: tl.constexpr, UPCAST: tl.constexpr,
    ROWS: tl.constexpr, IN: tl.constexpr, OUT: tl.constexpr,
):  # fmt: skip
    """Grid: (ceil(N / ROWS), ceil(d_out / OUT)). Inputs, then sizes, then the output, as TensorRT passes them."""
    place = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = place < tokens
    row = tl.load(order_ptr + place, mask=live, other=0)
    one = (tl.load(choice_ptr + row, mask=live, other=0) != 0) & live
    feature = (tl.program_id(1) * OUT + tl.arange(0, OUT)).to(tl.int64)
    seen = feature < D_OUT
    ones = tl.sum(one.to(tl.int32))
    total = tl.zeros((ROWS, OUT), tl.float32)
    if ones < tl.sum(live.to(tl.int32)):
        total = _rows_times(x_ptr, weight0_ptr, row, live, feature, D_IN, D_OUT, UPCAST, ROWS, IN, OUT)
    if ones > 0:
        second = _rows_times(x_ptr, weight1_ptr, row, live, feature, D_IN, D_OUT, UPCAST, ROWS, IN, OUT)
        total = tl.where(one[:, None], second, total)
    total += tl.load(bias_ptr + feature, mask=seen, other=0.0).to(tl.float32)[None, :]
    tl.store(
        y_ptr + row[:, None] * D_OUT + feature[None, :],
        total.to(y_ptr.dtype.element_ty),
        mask=live[:, None] & seen[None, :],
    )


def launch_routed_linear(x: Tensor, weight0: Tensor, weight1: Tensor, bias: Tensor | None, choice: Tensor) -> Tensor:
    """`routed_linear` (see `update_ops.py`) in a type of `KERNEL_DTYPES`."""
    result = x.new_empty((*x.shape[:-1], weight0.shape[0]))
    if result.numel() == 0:
        return result
    chosen = choice.reshape(-1).to(torch.int8)
    order = chosen.sort(stable=True).indices
    offset = x.new_zeros(weight0.shape[0]) if bias is None else bias.contiguous()
    grid = (triton.cdiv(chosen.numel(), BLOCK_ROWS), triton.cdiv(weight0.shape[0], BLOCK_OUT))
    routed_linear_kernel[grid](
        x.contiguous(), weight0.contiguous(), weight1.contiguous(), offset, chosen, order, chosen.numel(), result,
        D_IN=x.shape[-1], D_OUT=weight0.shape[0], UPCAST=must_upcast(x.dtype),
        ROWS=BLOCK_ROWS, IN=BLOCK_IN, OUT=BLOCK_OUT,
    )  # fmt: skip
    return result
