"""Which tokens a cut keeps: how many of each example, and in which order.

    topk        k = ⌈ρ·n⌉ of the example's n tokens                      (MaskLoRA §2.3, Top-k)
    threshold   as many as score at least κ(ρ)                           (m_i = 1[ŝ_i ≥ κ])

Never fewer than the floor ⌈ρ_min·n⌉, than the tokens that must stay, and than one; never more than are left.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

#: Shares come in float32: what lies within its rounding above a whole number of tokens is that number.
_ROUNDING = 1e-6


def tokens_of_share(share: Tensor, total: Tensor) -> Tensor:
    """⌈share·n⌉: share () or (B,), total (B,) float → (B,) float."""
    return torch.ceil(share * total * (1 - _ROUNDING))


def priorities(scores: Tensor, alive: Tensor, must: Tensor) -> Tensor:
    """What tokens are ranked by, (B,T): scores, below all others where tokens are gone, above where they must stay.

    Args:
        scores: (B,T), finite; alive, must: (B,T) bool.
    """
    limits = torch.finfo(scores.dtype)
    return torch.where(must, limits.max, torch.where(alive, scores, limits.min))


def kept_counts(wanted: Tensor, *, total: Tensor, alive: Tensor, must: Tensor, floor: float) -> Tensor:
    """How many tokens each example keeps, (B,) int64.

    Args:
        wanted: (B,) float; total: n, (B,) float; alive, must: (B,T) bool.
    """
    least = torch.maximum(tokens_of_share(torch.full_like(total, floor), total), must.sum(-1).to(total.dtype))
    left = (alive | must).sum(-1).to(total.dtype)
    return torch.minimum(torch.maximum(wanted, least), left).clamp_min(1).to(torch.int64)


def top_mask(priority: Tensor, counts: Tensor) -> Tensor:
    """True at the counts[b] tokens of largest priority, of equal ones the earlier: (B,T), (B,) → (B,T) bool."""
    order = priority.argsort(dim=-1, descending=True, stable=True)
    ranks = torch.empty_like(order).scatter_(
        -1, order, torch.arange(order.shape[-1], device=order.device).expand_as(order)
    )
    return ranks < counts.unsqueeze(-1)


class MonotoneTable(nn.Module):
    """A piecewise linear function of one number, as tensors, so that a graph can look it up; constant beyond its ends.

    Args:
        points: (x, y) pairs, x strictly rising.
    """

    starts: Tensor
    widths: Tensor
    rises: Tensor
    first: Tensor

    def __init__(self, points: Sequence[tuple[float, float]]) -> None:
        super().__init__()
        x = torch.tensor([point[0] for point in points], dtype=torch.float64)
        y = torch.tensor([point[1] for point in points], dtype=torch.float64)
        self.register_buffer("starts", x[:-1].float())
        self.register_buffer("widths", x.diff().float())
        self.register_buffer("rises", y.diff().float())
        self.register_buffer("first", y[:1].float())

    def extra_repr(self) -> str:
        """What the printed graph should show."""
        return f"points={len(self.starts) + 1}"

    def forward(self, x: Tensor) -> Tensor:
        """y at x: () → ()."""
        climbed = ((x - self.starts) / self.widths).clamp(0.0, 1.0) * self.rises
        return self.first.sum() + climbed.sum()
