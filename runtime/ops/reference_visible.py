"""What `visible_keys` means, pair by pair; axes as in `visible_ops.py`."""

from __future__ import annotations

import torch
from torch import Tensor


def visible_keys_reference(query_positions: Tensor, key_positions: Tensor, key_mask: Tensor, window: int) -> Tensor:
    """Query by query, key by key."""
    batch, queries, keys = *query_positions.shape, key_positions.shape[1]
    seen = torch.zeros(batch, 1, queries, keys, dtype=torch.bool)
    for b in range(batch):
        for q in range(queries):
            for k in range(keys):
                distance = int(query_positions[b, q]) - int(key_positions[b, k])
                near = window == 0 or distance < window
                seen[b, 0, q, k] = bool(key_mask[b, k]) and distance >= 0 and near
            if not seen[b, 0, q].any():
                seen[b, 0, q] = True
    return seen
