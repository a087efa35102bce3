"""A plain training loop: AdamW, a rate that falls linearly, clipped gradients; gates, if any, step along."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..passes.gated import GatedModel
from ..passes.methods.ccm_schedule import GateSchedule, GateStep
from ..progress import track

LEARNING_RATE = 1e-3
CLIP = 1.0


@dataclass(frozen=True)
class TrainingRun:
    """What a run recorded.

    Attributes:
        losses: the task's loss at every step, without the gates' terms.
        gates: what the routers did at every step; empty where there are none.
        collapse_rate: share of steps whose batch had near-constant masks; 0 without gates.
        seconds: wall time.
    """

    losses: tuple[float, ...]
    gates: tuple[GateStep, ...]
    collapse_rate: float
    seconds: float


def train(
    model: nn.Module,
    batches: Sequence[Mapping[str, Tensor]],
    *,
    learning_rate: float = LEARNING_RATE,
    description: str = "training",
    show: bool | None = None,
) -> TrainingRun:
    """Train what requires gradients in `model`, in place, one step a batch; leaves it in eval mode.

    Args:
        model: returns `loss` where a batch has labels: a transformers, PEFT or gated model.
        batches: all of them in order, epochs one after the other.
        learning_rate: at the first step; it falls to zero at the last.
        description: of the progress bar; show: as in `progress.track`.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=learning_rate)
    rate = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, len(batches))
    schedule = model.schedule(len(batches), optimiser) if isinstance(model, GatedModel) else None
    losses: list[float] = []
    started = time.perf_counter()
    model.train()
    for batch in track(batches, description, show=show):
        answer = model(**batch)
        answer["loss"].backward()
        nn.utils.clip_grad_norm_(parameters, CLIP)
        optimiser.step()
        optimiser.zero_grad()
        rate.step()
        losses.append(float(answer["loss" if schedule is None else "task_loss"].detach()))
        if schedule is not None:
            schedule.step()
    model.eval()
    gates = tuple(schedule.history) if isinstance(schedule, GateSchedule) else ()
    rate_of_collapse = schedule.collapse_rate() if isinstance(schedule, GateSchedule) else 0.0
    return TrainingRun(tuple(losses), gates, rate_of_collapse, time.perf_counter() - started)
