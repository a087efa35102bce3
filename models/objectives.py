"""What rank routing adds to the task loss: budget, entropy and smoothness terms, and temperature schedules."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .configs.ccm import CCM
from .gate_records import last_records
from .gates import GateRecord, RankRouter

_TARGET_SPREAD = 1.5  # ranks; width of the target histogram around the budget (Eq. 14 names none)


def gate_loss(routers: Sequence[RankRouter]) -> Tensor:
    """The routers' terms of the objective on their last batch: a scalar, the mean over routers.

    λ(E‖g‖₀ − budget) − β·H(p)   (Eq. 5, 6), or KL(π̂ ‖ π) − β·H(p)   (Eq. 14), plus smoothness·Var(k)   (§6.4).

    Raises:
        UntrainedGateError: a router has not been called yet.
    """
    records = last_records(routers)
    return torch.stack([_router_loss(*pair) for pair in zip(routers, records, strict=True)]).mean()


def _router_loss(router: RankRouter, record: GateRecord) -> Tensor:
    config = router.config
    loss = -config.entropy_weight * rank_entropy(record.probabilities).mean()
    if config.regularizer == "l0":
        loss = loss + router.penalty * (record.count.mean() - router.budget)
    elif config.regularizer == "kl":
        loss = loss + config.penalty * histogram_divergence(record.count, router.budget, router.max_rank)
    if config.smoothness > 0:
        loss = loss + config.smoothness * record.count.var(dim=0, unbiased=False).mean()
    return loss


def rank_entropy(probabilities: Tensor) -> Tensor:
    """H(p) in nats over the rank axis (Eq. 7): (B, S, r) → (B, S). Gates that do not sum to one are normalised."""
    p = probabilities / probabilities.sum(-1, keepdim=True).clamp_min(1e-12)
    return -(p * torch.log(p.clamp_min(1e-12))).sum(-1)


def histogram_divergence(count: Tensor, budget: float, max_rank: int) -> Tensor:
    """KL(π̂ ‖ π) of the batch's rank histogram to one peaked at the budget (Eq. 14); count: (B, S) → scalar.

    Each count spreads over its neighbours with a width of half a rank, which makes the histogram differentiable.
    """
    ranks = torch.arange(1, max_rank + 1, dtype=count.dtype, device=count.device)
    soft = torch.softmax(-((count.flatten().unsqueeze(-1) - ranks) ** 2) / (2 * 0.5**2), dim=-1)
    observed = soft.mean(0).clamp_min(1e-12)
    target = torch.softmax(-((ranks - budget) ** 2) / (2 * _TARGET_SPREAD**2), dim=-1).clamp_min(1e-12)
    return (observed * (observed.log() - target.log())).sum()


def temperature_at(config: CCM, progress: float) -> float:
    """τ at a point of training, `progress` in [0, 1] (appendix B.2)."""
    start, end = config.temperature, config.temperature_min
    if config.schedule == "constant":
        return start
    done = min(max(progress, 0.0), 1.0)
    if config.schedule == "linear":
        return max(end, start - (start - end) * done)
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2


def mean_count(records: Sequence[GateRecord]) -> float:
    """E[k] of a batch over all sites of all routers."""
    return float(torch.cat([record.count.detach() for record in records], dim=1).mean())
