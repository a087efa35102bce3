"""What moves TS-PEFT's thresholds over a training run: their own optimiser, and the level that follows a budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ...models.update_threshold import UpdateThreshold
from ..find.thresholds import thresholds_of
from ..harden.levels import level_for
from .method import MethodSchedule

if TYPE_CHECKING:
    from ..gated import GatedModel

_RAMP = 0.5  # share of the run over which the budget falls from everything to what was asked for


@dataclass(frozen=True)
class ThresholdStep:
    """One training step of the thresholds.

    Attributes:
        thresholds: site → τ; shares: site → share of the real tokens that took the update since the last step.
        level: what the budget adds to every τ.
    """

    step: int
    thresholds: Mapping[str, float]
    shares: Mapping[str, float]
    level: float

    @property
    def update_share(self) -> float:
        """Mean over sites; sparsity (Eq. 21) is what is left."""
        return float(np.mean(list(self.shares.values()))) if self.shares else 1.0


class ThresholdSchedule(MethodSchedule):
    """τ and the level over a training run. Its state lives in the gates' buffers: a resumed run goes on where it was.

    Args:
        model: the gated model; total_steps: optimiser steps of the run.
        optimizer: the run's; τ's step follows its learning rate, as a share of the rate it started from. Without one
            the step stays the same.
        steps: site → how far one step moves τ at the start, instead of the config's.
    """

    def __init__(
        self,
        model: GatedModel,
        total_steps: int,
        optimizer: torch.optim.Optimizer | None,
        steps: Mapping[str, float] | None = None,
    ) -> None:
        self.model, self.total_steps, self.optimizer, self.steps = model, total_steps, optimizer, steps
        self.history: list[ThresholdStep] = []

    @torch.no_grad()
    def step(self) -> ThresholdStep:
        """Move every τ by what the last batch showed, then the level; call once per optimiser step."""
        gates = thresholds_of(self.model.graph_module)
        rate, shares = learning_rate_share(self.optimizer), dict[str, float]()
        for name, gate in gates.items():
            start = gate.config.step_scale if self.steps is None else self.steps[name]
            share = gate.move(rate * start)
            if share is not None:
                shares[name] = share
        first = next(iter(gates.values()))
        if first.budget is not None and shares:
            self._follow_budget(gates, first.budget)
        row = ThresholdStep(
            step=int(first.updates),
            thresholds={name: float(gate.tau) for name, gate in gates.items()},
            shares=shares,
            level=float(first.level),
        )
        self.history.append(row)
        return row

    def figures(self) -> Mapping[str, float]:
        """Mean threshold, share of tokens that take the update, and the level."""
        if not self.history:
            return {}
        row = self.history[-1]
        mean = float(np.mean(list(row.thresholds.values())))
        return {"threshold_mean": mean, "update_share": row.update_share, "threshold_level": row.level}

    def _follow_budget(self, gates: Mapping[str, UpdateThreshold], budget: float) -> None:
        """Move the level towards the one at which the last batch would have met the budget of this step."""
        first = next(iter(gates.values()))
        done = min(1.0, int(first.updates) / max(1.0, _RAMP * self.total_steps))
        excess = {name: _real_excess(gate) for name, gate in gates.items() if gate.record is not None}
        wanted = level_for(excess, 1 - done * (1 - budget))
        level = float(first.level) + first.config.level_rate * (wanted - float(first.level))
        for gate in gates.values():
            gate.level.fill_(level)


def learning_rate_share(optimizer: torch.optim.Optimizer | None) -> float:
    """α of Eq. 20: the learning rate over its own peak or start; 1 where no schedule moves it."""
    if optimizer is None:
        return 1.0
    group = optimizer.param_groups[0]
    start = float(group.get("max_lr", group.get("initial_lr", group["lr"])))
    return float(group["lr"]) / start if start > 0 else 1.0


def _real_excess(gate: UpdateThreshold) -> Tensor:
    """r − τ at the real tokens of the last batch, (N,)."""
    if gate.record is None:
        return torch.empty(0)
    return (gate.record.ratio - gate.tau)[gate.record.real.bool()].flatten().cpu()
