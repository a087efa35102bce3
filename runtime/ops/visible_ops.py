"""Which keys a query of a causal decoder sees, told by positions instead of by places in a row.

    query_positions (B, T)     0 1 2 3          visible (B, 1, T, N), true where, for a real key,
    key_positions   (B, N)     0 2 3        →     key position <= query position
    key_mask        (B, N)     1 1 1              and query position - key position < window

Positions are those of the text, so the answer is right for padding on either side, for caches from which rows were
taken out, and for sliding windows over such caches. Only importing this module defines the operator.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .argument_checks import misfit, sizes_agree
from .schema import NAMESPACE


@torch.library.custom_op(f"{NAMESPACE}::visible_keys", mutates_args=())
def visible_keys(query_positions: Tensor, key_positions: Tensor, key_mask: Tensor, window: int) -> Tensor:
    """The keys that each query sees: real ones, not later than the query, at most `window` - 1 before it.

    A query that sees no real key, such as padding, sees every row: softmax over nothing is NaN, and a NaN in a row that
    nobody reads still spoils sums over it.

    Args:
        query_positions: (B, T) int64; key_positions: (B, N) int64, in any order.
        key_mask: (B, N), not 0 at real keys; window: of a sliding attention, 0 where every earlier key is seen.

    Returns:
        (B, 1, T, N) bool.

    Raises:
        InputError: tensors that do not fit together.
    """
    _check(query_positions, key_positions, key_mask)
    distance = query_positions[:, None, :, None] - key_positions[:, None, None, :]
    seen = (distance >= 0) & (key_mask != 0)[:, None, None, :]
    if window > 0:
        seen &= distance < window
    return seen | ~seen.any(-1, keepdim=True)


@visible_keys.register_fake
def _visible_keys_fake(query_positions: Tensor, key_positions: Tensor, key_mask: Tensor, window: int) -> Tensor:  # noqa: ARG001
    _check(query_positions, key_positions, key_mask)
    shape = (query_positions.shape[0], 1, query_positions.shape[1], key_positions.shape[1])
    return query_positions.new_empty(shape, dtype=torch.bool)


def _check(query_positions: Tensor, key_positions: Tensor, key_mask: Tensor) -> None:
    tensors = {"query_positions": query_positions, "key_positions": key_positions, "key_mask": key_mask}
    fits = all(tensor.dim() == 2 for tensor in tensors.values())  # noqa: PLR2004  # (batch, tokens)
    fits = fits and query_positions.dtype == key_positions.dtype == torch.int64
    pairs = [(query_positions.shape[0], key_positions.shape[0])] if fits else []
    pairs += [*zip(key_positions.shape, key_mask.shape, strict=True)] if fits else []
    if not fits or not sizes_agree(pairs):
        raise misfit("visible_keys", tensors, "positions (B, T) and (B, N) int64, a mask (B, N)")
