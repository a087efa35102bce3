"""What the custom operators mean, written for reading: every kernel of every back end is compared with this file."""

from __future__ import annotations

import torch
from torch import Tensor


def gated_lora_reference(
    base: Tensor, x: Tensor, lora_a: Tensor, lora_b: Tensor, indices: Tensor, scale: Tensor
) -> Tensor:
    """`base + scale * B diag(g) A x` with g in {0, 1}^r from the listed directions; axes as in `schema.gated_lora`."""
    result = base.clone()
    for example, listed in enumerate(indices.tolist()):
        gate = torch.zeros(lora_a.shape[0], dtype=lora_a.dtype)
        for direction in listed:
            if direction >= 0:
                gate[direction] = 1
        update = lora_b @ torch.diag(gate) @ lora_a  # (d_out, d_in)
        result[example] = base[example] + scale * (x[example] @ update.t())
    return result
