"""Distill: gates that were never trained are fitted to reproduce the ungated model within the budget.

    minimise over the routers alone   KL(ungated ‖ gated) + gate terms   on unlabelled batches

Adapters, head and base stay as they are. The teacher is the same graph with its gates opened, so both share weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from ...models.families import ATTENTION_MASK
from ...progress import track
from ..graph.signature import signature_of
from ..methods.ccm import GatedModel, routers_of
from .freeze import FreezeRegularization
from .static_gates import open_every_gate

_LEARNING_RATE = 2e-3
_CLIP = 1.0
_LOGITS = 2  # axes of (B, classes); with tokens between them there are more
_REPORTED = 20  # last steps that the quality figures average


@dataclass(frozen=True)
class DistillationQuality:
    """How near the fitted gates come: mean KL (nats) to the ungated model and mean effective rank, last steps."""

    steps: int
    divergence: float
    effective_rank: float

    def __str__(self) -> str:
        return (
            f"routers fitted by distillation in {self.steps} steps: KL {self.divergence:.4f} to the ungated model, "
            f"effective rank {self.effective_rank:.2f}"
        )


def distill_gates(
    model: GatedModel, data: Sequence[Mapping[str, Tensor]], *, steps: int, show: bool | None = None
) -> DistillationQuality:
    """Fit the routers of `model` in place; nothing else of it changes.

    Args:
        model: a gated model; data: unlabelled batches, cycled through; steps: optimiser steps.
    """
    student = FreezeRegularization()(model.graph_module).graph_module
    teacher = open_every_gate(student)(student).graph_module
    student.train(mode=False)
    routers = routers_of(student)
    parameters = [p for router in routers for p in router.parameters()]
    trainable = {p: p.requires_grad for p in model.parameters()}
    rows: list[tuple[float, float]] = []
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
        optimiser = torch.optim.AdamW(parameters, lr=_LEARNING_RATE, weight_decay=0.0)
        schedule = model.schedule(steps)
        for router in routers:
            router.train()
        for batch in track(_cycle(data, steps), "fitting the routers", show=show, total=steps):
            divergence = _step(student, teacher, batch, model, optimiser)
            rows.append((divergence, schedule.step().ranks.mean))
    finally:
        for parameter, flag in trainable.items():
            parameter.requires_grad_(flag)
        for router in routers:
            router.train(model.training)
    last = torch.tensor(rows[-_REPORTED:]).mean(0).tolist()
    return DistillationQuality(steps, last[0], last[1])


def _step(
    student: fx.GraphModule,
    teacher: fx.GraphModule,
    batch: Mapping[str, Tensor],
    model: GatedModel,
    optimiser: torch.optim.Optimizer,
) -> float:
    inputs = signature_of(student).arrange(batch)
    with torch.no_grad():
        wanted = teacher(*inputs)
    answered = student(*inputs)
    divergence = output_divergence(wanted, answered, batch.get(ATTENTION_MASK))
    optimiser.zero_grad()
    torch.autograd.backward(divergence + model.gate_loss())
    nn.utils.clip_grad_norm_(optimiser.param_groups[0]["params"], _CLIP)
    optimiser.step()
    return float(divergence.detach())


def output_divergence(wanted: Mapping[str, Tensor], answered: Mapping[str, Tensor], mask: Tensor | None) -> Tensor:
    """Mean divergence of two answers, summed over their outputs.

    Logits (named so): KL in nats over the last axis, over real tokens only where they have a token axis like the
    mask's. Other floating outputs: squared error over the wanted output's mean square.
    """
    terms = [
        _logit_divergence(value, answered[name], mask)
        if "logits" in name
        else (answered[name] - value).square().mean() / value.square().mean().clamp_min(1e-12)
        for name, value in wanted.items()
        if value.is_floating_point()
    ]
    return torch.stack(terms).sum()


def _logit_divergence(wanted: Tensor, answered: Tensor, mask: Tensor | None) -> Tensor:
    rows = nn.functional.kl_div(
        torch.log_softmax(answered, -1), torch.log_softmax(wanted, -1), reduction="none", log_target=True
    ).sum(-1)
    if wanted.dim() > _LOGITS and mask is not None and mask.shape == rows.shape:
        return (rows * mask).sum() / mask.sum().clamp_min(1)
    return rows.mean()


def _cycle(data: Sequence[Mapping[str, Tensor]], steps: int) -> Iterator[Mapping[str, Tensor]]:
    return itertools.islice(itertools.cycle(data), steps)
