"""`token_gated_lora` on a GPU: one program a tile of tokens; a tile where every token skips never reads B.

    x tile ─▶ u = A x ─▶ |s|·√(uᵀ G u) ≥ τ·‖base‖ ? ─▶ base + s·B u for the tokens that take it, base for the rest

Norms are taken in float32 whatever the type, so a token that stands within rounding of the threshold may decide
otherwise than in 16-bit torch. Tokens that skip keep the bits of the base. Axes as in `update_ops.py`; N tokens in all.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_tiles import BLOCK_IN, BLOCK_ROWS, block_out, must_upcast, padded_rank, product

_COLUMNS = tl.constexpr(16)
"""Columns of G that one program holds at a time; 64 spill."""


@triton.jit
def _quadratic_form(down, gram_ptr, RANK: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr):
    """uᵀ G u of each row u of `down`: (ROWS,) float32, by a few columns of G at a time."""
    slot = tl.arange(0, PADDED)
    form = tl.zeros((ROWS,), tl.float32)
    for start in range(0, PADDED, _COLUMNS):
        column = start + tl.arange(0, _COLUMNS)
        inside = (slot < RANK)[:, None] & (column < RANK)[None, :]
        gram = tl.load(gram_ptr + slot[:, None] * RANK + column[None, :], mask=inside, other=0.0)
        picked = down
        if _COLUMNS < PADDED:
            # Registers cannot be sliced; a product with ones and zeros is exact.
            picked = tl.dot(down, (slot[:, None] == column[None, :]).to(tl.float32), input_precision="ieee")
        form += tl.sum(tl.dot(down, gram.to(tl.float32), input_precision="ieee") * picked, 1)
    return form


@triton.jit
def token_gated_lora_kernel(
    base_ptr, x_ptr, a_ptr, b_ptr, gram_ptr, threshold_ptr, scale_ptr, tokens, y_ptr,
    D_IN: tl.constexpr, D_OUT: tl.constexpr, RANK: tl.constexpr, PADDED: tl.constexpr, UPCAST: tl.constexpr,
    ROWS: tl.constexpr, IN: tl.constexpr, OUT: tl.constexpr,
):  # fmt: skip
    """Grid: (ceil(N / ROWS),). Inputs, then sizes, then the output, as TensorRT passes them."""
    token = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = token < tokens
    slot = tl.arange(0, PADDED)
    used = slot < RANK
    down = tl.zeros((ROWS, PADDED), tl.float32)
    for start in range(0, D_IN, IN):
        feature = start + tl.arange(0, IN)
        seen = feature < D_IN
        x = tl.load(x_ptr + token[:, None] * D_IN + feature[None, :], mask=live[:, None] & seen[None, :], other=0.0)
        a = tl.load(a_ptr + slot[None, :] * D_IN + feature[:, None], mask=used[None, :] & seen[:, None], other=0.0)
        down += product(x, a, UPCAST)
    square = tl.zeros((ROWS,), tl.float32)
    for start in range(0, D_OUT, OUT):
        feature = start + tl.arange(0, OUT)
        inside = live[:, None] & (feature < D_OUT)[None, :]
        part = tl.load(base_ptr + token[:, None] * D_OUT + feature[None, :], mask=inside, other=0.0).to(tl.float32)
        square += tl.sum(part * part, 1)
    form = _quadratic_form(down, gram_ptr, RANK, PADDED, ROWS)
    scale = tl.load(scale_ptr).to(tl.float32)
    size = tl.abs(scale) * tl.sqrt(tl.maximum(form, 0.0))
    taking = (size >= tl.load(threshold_ptr).to(tl.float32) * tl.sqrt(square)) & live
    someone = tl.sum(taking.to(tl.int32)) > 0
    weighted = (down * scale).to(x_ptr.dtype.element_ty)
    for start in range(0, D_OUT, OUT):
        feature = start + tl.arange(0, OUT)
        seen = feature < D_OUT
        place = token[:, None] * D_OUT + feature[None, :]
        inside = live[:, None] & seen[None, :]
        y = tl.load(base_ptr + place, mask=inside, other=0.0)
        if someone:
            b = tl.load(b_ptr + feature[None, :] * RANK + slot[:, None], mask=used[:, None] & seen[None, :], other=0.0)
            updated = (y.to(tl.float32) + product(weighted, b, UPCAST)).to(y_ptr.dtype.element_ty)
            y = tl.where(taking[:, None], updated, y)
        tl.store(y_ptr + place, y, mask=inside)


def launch_token_gated_lora(  # the operator's tensors, in order
    base: Tensor, x: Tensor, lora_a: Tensor, lora_b: Tensor, gram: Tensor, threshold: Tensor, scale: Tensor
) -> Tensor:
    """`token_gated_lora` (see `update_ops.py`) for r <= 64 in a type of `KERNEL_DTYPES`; never an alias of `base`."""
    result = torch.empty_like(base, memory_format=torch.contiguous_format)
    if result.numel() == 0:
        return result
    tokens, rank = base.numel() // base.shape[-1], lora_a.shape[0]
    token_gated_lora_kernel[(triton.cdiv(tokens, BLOCK_ROWS),)](
        base.contiguous(), x.contiguous(), lora_a.contiguous(), lora_b.contiguous(), gram.contiguous(), threshold,
        scale, tokens, result,
        D_IN=x.shape[-1], D_OUT=base.shape[-1], RANK=rank, PADDED=padded_rank(rank), UPCAST=must_upcast(x.dtype),
        ROWS=BLOCK_ROWS, IN=BLOCK_IN, OUT=block_out(x.dtype, padded_rank(rank)),
    )  # fmt: skip
    return result
