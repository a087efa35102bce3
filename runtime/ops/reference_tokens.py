"""What the token operators mean, written for reading; axes as in `token_ops.py`."""

from __future__ import annotations

import torch
from torch import Tensor


def select_tokens_reference(priority: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """The K positions of largest priority in each row, ascending, and which of them are among the row's count."""
    most = max([1, *counts.tolist()])
    rows, flags = [], []
    for row, count in zip(priority.tolist(), counts.tolist(), strict=True):
        ranked = sorted(range(len(row)), key=lambda position: (-row[position], position))
        listed = sorted(ranked[:most])
        rows.append(listed)
        flags.append([position in ranked[: max(count, 0)] for position in listed])
    return torch.tensor(rows).view(-1, most), torch.tensor(flags, dtype=torch.bool).view(-1, most)


def gather_tokens_reference(x: Tensor, indices: Tensor, dim: int) -> Tensor:
    """Row by row: the listed positions of axis `dim`, each example's own."""
    examples = indices.shape[0]
    batch = x.expand(examples, *x.shape[1:]) if x.shape[0] == 1 else x
    copies = batch.shape[0] // examples
    return torch.stack([row.index_select(dim - 1, indices[number // copies]) for number, row in enumerate(batch)])


def scatter_tokens_reference(x: Tensor, indices: Tensor, valid: Tensor, length: int, fill: float) -> Tensor:
    """Token by token: each valid slot goes to its position, all other positions are `fill`."""
    result = torch.full((x.shape[0], length, *x.shape[2:]), fill, dtype=x.dtype)
    for example, (positions, flags) in enumerate(zip(indices.tolist(), valid.tolist(), strict=True)):
        for slot, (position, flag) in enumerate(zip(positions, flags, strict=True)):
            if flag:
                result[example, position] = x[example, slot]
    return result
