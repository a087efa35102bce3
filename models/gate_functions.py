"""The mathematics of gates: selection of ranks, the straight-through estimator, hard-concrete gates."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SMALLEST_TAIL = 1e-37  # the least normal float32 is 1.2e-38
STRETCH_LOW, STRETCH_HIGH = -0.1, 1.1  # Louizos et al. 2018, §4


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """`hard` in the forward pass, the gradient of `soft` in the backward pass (CCM-LoRA §2.4)."""
    return hard.detach() + (soft - soft.detach())


def ranks_within(site_ranks: Tensor, max_rank: int) -> Tensor:
    """Which directions exist at each site: (S,) ranks → (S, max_rank) booleans."""
    return torch.arange(max_rank, device=site_ranks.device) < site_ranks.unsqueeze(-1)


def select_ranks(
    scores: Tensor, level: Tensor, site_ranks: Tensor, *, rule: str, k_min: int, buckets: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The active rank directions of each example and site.

    Args:
        scores: (B, S, r), non-negative, zero beyond a site's rank.
        level: () tensor; log(1 − c) for "coverage", k for "fixed", a threshold for "threshold".
        site_ranks: (S,) ranks of the sites.
        rule: "coverage": the least k whose k largest probabilities sum to ≥ c; "fixed": k = level;
            "threshold": as many as score above the level.
        k_min: fewest active directions.
        buckets: (n,) rank counts to which k is rounded up, or None.

    Returns:
        indices (B, S, r): active directions by falling score, then −1; mask (B, S, r): booleans.
    """
    ordered, order = torch.sort(scores, dim=-1, descending=True)
    position = torch.arange(scores.shape[-1], device=scores.device)
    count = active_count(ordered, level, site_ranks, rule=rule, k_min=k_min, buckets=buckets)
    active = position < count.unsqueeze(-1)
    indices = torch.where(active, order, torch.full_like(order, -1))
    mask = (indices.unsqueeze(-1) == position).any(dim=-2)
    return indices, mask


def active_count(
    ordered: Tensor, level: Tensor, site_ranks: Tensor, *, rule: str, k_min: int, buckets: Tensor | None
) -> Tensor:
    """k(x) for scores (B, S, r) in falling order: (B, S). Arguments as for `select_ranks`."""
    count = _count(ordered, level, rule)
    if buckets is not None:
        count = _round_up(count, buckets)
    return torch.minimum(count.clamp_min(k_min), site_ranks)


def _count(ordered: Tensor, level: Tensor, rule: str) -> Tensor:
    """k(x) before clipping: (B, S, r) scores in falling order → (B, S)."""
    if rule == "fixed":
        return torch.round(level).to(torch.int64).expand(ordered.shape[:-1])
    if rule == "threshold":
        return (ordered > level).sum(-1)
    return (log_tail(ordered) > level).sum(-1)


def log_tail(ordered: Tensor) -> Tensor:
    """log Σ_{j ≥ i} p_j of probabilities in falling order, (…, r) → (…, r).

    The k largest sum to ≥ c exactly where the tail behind them is ≤ 1 − c. Summed from its small end the tail keeps
    its precision where p is sharp, while prefix sums round to one and tell no ranks apart.
    """
    tail = torch.cumsum(ordered.flip(-1), dim=-1).flip(-1)
    return torch.log(tail.clamp_min(SMALLEST_TAIL))


def _round_up(count: Tensor, buckets: Tensor) -> Tensor:
    """The least bucket ≥ count; counts above the last bucket stay as they are."""
    at_least = buckets >= count.unsqueeze(-1)
    largest = torch.iinfo(torch.int64).max
    rounded = torch.where(at_least, buckets, torch.full_like(buckets, largest)).amin(-1)
    return torch.where(at_least.any(-1), rounded, count)


def hard_concrete_gate(logits: Tensor, temperature: Tensor, *, sample: bool) -> Tensor:
    """A clipped, stretched concrete variable in [0, 1] (Louizos et al., Eq. 10-12); its median when not sampling."""
    if sample:
        uniform = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6)
        logits = (torch.logit(uniform) + logits) / temperature
    return (torch.sigmoid(logits) * (STRETCH_HIGH - STRETCH_LOW) + STRETCH_LOW).clamp(0.0, 1.0)


def hard_concrete_offset(temperature: float) -> float:
    """How far the logit of P(gate > 0) lies above the gate's own logit: −τ·log(−γ/ζ), as a number to subtract."""
    return temperature * math.log(-STRETCH_LOW / STRETCH_HIGH)


def hard_concrete_open(logits: Tensor, temperature: Tensor) -> Tensor:
    """P(gate > 0) of a hard-concrete gate, the analytic E‖g‖₀ term by term (Louizos et al., Eq. 12)."""
    return torch.sigmoid(logits - temperature * math.log(-STRETCH_LOW / STRETCH_HIGH))
