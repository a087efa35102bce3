"""What the operators on updates mean, written for reading; axes as in `update_ops.py`."""

from __future__ import annotations

import torch
from torch import Tensor


def token_gated_lora_reference(
    base: Tensor, x: Tensor, lora_a: Tensor, lora_b: Tensor, threshold: Tensor, scale: Tensor
) -> Tensor:
    """Token by token: the whole update is computed, and added if it is large enough beside what the layer answers."""
    rows = []
    for answer, state in zip(base.reshape(-1, base.shape[-1]), x.reshape(-1, x.shape[-1]), strict=True):
        update = scale * (lora_b @ (lora_a @ state))
        rows.append(answer + update if update.norm() >= threshold * answer.norm() else answer)
    return torch.stack(rows).view(base.shape)


def routed_linear_reference(x: Tensor, weight0: Tensor, weight1: Tensor, bias: Tensor | None, choice: Tensor) -> Tensor:
    """Token by token: the product with the weight that the token chose."""
    rows = [
        (weight1 if chosen else weight0) @ state + (0 if bias is None else bias)
        for state, chosen in zip(x.reshape(-1, x.shape[-1]), choice.flatten().tolist(), strict=True)
    ]
    return torch.stack(rows).view(*x.shape[:-1], weight0.shape[0])
