"""What the Triton kernels share: tile sizes, the rank that tensor cores need, and one product in full precision."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl

RANKS = (16, 32, 64)
"""Sizes that a rank is padded to; `tl.dot` takes none below 16, and above 64 the tiles spill."""

BLOCK_ROWS, BLOCK_IN, BLOCK_OUT = 32, 32, 64
"""Tokens, input features and output features that one program holds at a time."""

_WIDE_RANK = 64


def padded_rank(rank: int) -> int:
    """The least of `RANKS` that holds `rank` directions."""
    return next(size for size in RANKS if rank <= size)


def block_out(dtype: torch.dtype, padded: int) -> int:
    """Output features that one program holds at a time: fewer for float32 at the widest rank, which else spills."""
    return BLOCK_OUT // 4 if dtype == torch.float32 and padded == _WIDE_RANK else BLOCK_OUT


def must_upcast(dtype: torch.dtype) -> bool:
    """Whether products need float32 operands: the interpreter multiplies the bit patterns of bfloat16."""
    return bool(triton.knobs.runtime.interpret) and dtype == torch.bfloat16


@triton.jit
def product(left, right, UPCAST: tl.constexpr):
    """left (i, j) · right (j, k) in float32; float32 operands are multiplied as such, not as tf32."""
    if UPCAST:
        return tl.dot(left.to(tl.float32), right.to(tl.float32), input_precision="ieee")
    return tl.dot(left, right, input_precision="ieee")
