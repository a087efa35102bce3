"""GateRA's terms of the objective: entropy, which pushes gates to 0 and 1, and the budget of open tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .gate_records import last_records
from .modulation import Modulation, ModulationRecord


def mean_gate(records: Sequence[ModulationRecord]) -> Tensor:
    """Mean g over real tokens and sites, ()."""
    return torch.stack([record.total_gate() for record in records]).sum() / _tokens(records)


def mean_entropy(records: Sequence[ModulationRecord]) -> Tensor:
    """Mean H(g) over real tokens and sites in nats, ()."""
    return torch.stack([record.total_entropy() for record in records]).sum() / _tokens(records)


def modulation_loss(modulations: Sequence[Modulation]) -> Tensor:
    """β·H(g) + λ·(mean g − budget) + ρ·(mean g − budget)² on the last batch, (); the last two where there is a budget.

    The square keeps the mean from running past the budget, the multiplier λ closes the gap that it leaves.

    Raises:
        UntrainedGateError: the gates were not called yet.
    """
    records = last_records(modulations)
    first = modulations[0]
    loss = first.config.entropy_weight * mean_entropy(records)
    if first.budget is None:
        return loss
    excess = mean_gate(records) - first.budget
    return loss + first.multiplier.to(loss.dtype) * excess + first.config.penalty * excess.square()


def _tokens(records: Sequence[ModulationRecord]) -> Tensor:
    return torch.stack([record.count for record in records]).sum().clamp_min(1)
