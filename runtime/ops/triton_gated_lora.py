"""`gated_lora` on a GPU: one program a tile of tokens of one example; only its active rows of A and B are read.

    x tile ─▶ u = A[idx] x   (all of d_in, once)   ─▶ for each tile of d_out: base + s·B[:, idx] u

An example without active directions is copied, bit for bit. Axes as in `schema.py`; M tokens an example.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_tiles import BLOCK_IN, BLOCK_ROWS, block_out, must_upcast, padded_rank, product


@triton.jit
def gated_lora_kernel(
    base_ptr, x_ptr, a_ptr, b_ptr, indices_ptr, scale_ptr, tokens, y_ptr,
    D_IN: tl.constexpr, D_OUT: tl.constexpr, RANK: tl.constexpr, PADDED: tl.constexpr, UPCAST: tl.constexpr,
    ROWS: tl.constexpr, IN: tl.constexpr, OUT: tl.constexpr,
):  # fmt: skip
    """Grid: (ceil(M / ROWS), B). Inputs, then sizes, then the output, as TensorRT passes them."""
    example = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = token < tokens
    row = example * tokens + token
    slot = tl.arange(0, PADDED)
    direction = tl.load(indices_ptr + example * RANK + slot, mask=slot < RANK, other=-1)
    active = direction >= 0
    gated = tl.sum(active.to(tl.int32)) > 0
    down = tl.zeros((ROWS, PADDED), tl.float32)
    if gated:
        for start in range(0, D_IN, IN):
            feature = start + tl.arange(0, IN)
            seen = feature < D_IN
            x = tl.load(x_ptr + row[:, None] * D_IN + feature[None, :], mask=live[:, None] & seen[None, :], other=0.0)
            a = tl.load(
                a_ptr + direction[None, :] * D_IN + feature[:, None], mask=active[None, :] & seen[:, None], other=0.0
            )
            down += product(x, a, UPCAST)
    weighted = (down * tl.load(scale_ptr).to(tl.float32)).to(x_ptr.dtype.element_ty)
    for start in range(0, D_OUT, OUT):
        feature = start + tl.arange(0, OUT)
        seen = feature < D_OUT
        place = row[:, None] * D_OUT + feature[None, :]
        inside = live[:, None] & seen[None, :]
        y = tl.load(base_ptr + place, mask=inside, other=0.0)
        if gated:
            b = tl.load(
                b_ptr + feature[None, :] * RANK + direction[:, None], mask=active[:, None] & seen[None, :], other=0.0
            )
            y = (y.to(tl.float32) + product(weighted, b, UPCAST)).to(y_ptr.dtype.element_ty)
        tl.store(y_ptr + place, y, mask=inside)


def launch_gated_lora(
    base: Tensor, x: Tensor, lora_a: Tensor, lora_b: Tensor, indices: Tensor, scale: Tensor
) -> Tensor:
    """`gated_lora` (see `schema.py`) for r <= 64 in a type of `KERNEL_DTYPES`; never an alias of `base`."""
    result = torch.empty_like(base, memory_format=torch.contiguous_format)
    if result.numel() == 0:
        return result
    examples, rank = indices.shape
    tokens = base.numel() // (examples * base.shape[-1])
    gated_lora_kernel[(triton.cdiv(tokens, BLOCK_ROWS), examples)](
        base.contiguous(), x.contiguous(), lora_a.contiguous(), lora_b.contiguous(), indices.contiguous(), scale,
        tokens, result,
        D_IN=x.shape[-1], D_OUT=base.shape[-1], RANK=rank, PADDED=padded_rank(rank), UPCAST=must_upcast(x.dtype),
        ROWS=BLOCK_ROWS, IN=BLOCK_IN, OUT=block_out(x.dtype, padded_rank(rank)),
    )  # fmt: skip
    return result
