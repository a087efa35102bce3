"""Distill: gates that were never trained are fitted to reproduce the ungated model within the budget.

    minimise over one method's gates alone   KL(ungated ‖ gated) + gate terms   on unlabelled batches

Adapters, head and base stay as they are. The teacher is the same graph with its gates taken out, so both share weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, fx, nn

from ...models.families import ATTENTION_MASK
from ...models.gate_modules import GATE_MODULES
from ...progress import track
from ..chain import Chain
from ..find.last_token import answered_tokens
from ..find.selections import find_selections
from ..graph.signature import signature_of
from .freeze import FreezeRegularization

if TYPE_CHECKING:
    from ..gated import GatedModel

#: Last steps that quality figures average.
LAST = 20

_LEARNING_RATE = 2e-3
_CLIP = 1.0
_LOGITS = 2  # axes of (B, classes); with tokens between them there are more


def distill(
    model: GatedModel,
    data: Sequence[Mapping[str, Tensor]],
    *,
    method: str,
    parameters: Sequence[nn.Parameter],
    penalty: Callable[[], Tensor | None],
    after: Callable[[], object],
    steps: int,
    show: bool | None = None,
) -> float:
    """Fit one method's gates in place; nothing else of the model changes.

    Args:
        model: a gated model; data: unlabelled batches, cycled through; steps: optimiser steps.
        method: whose gates; those of the model's other methods are open meanwhile.
        parameters: the gates' own; none where `after` moves the gates by the gradients that they received.
        penalty: their term of the objective on the last batch, None where there is none.
        after: called after every step.

    Returns:
        Mean KL in nats (see `output_divergence`) over the last steps.
    """
    student, teacher = student_and_teacher(model, method)
    rows: list[float] = []
    optimiser = torch.optim.AdamW(parameters, lr=_LEARNING_RATE, weight_decay=0.0) if parameters else None
    with _only_these_train(model, student, parameters), torch.enable_grad():
        for batch in track(_cycle(data, steps), f"fitting {method}'s gates", show=show, total=steps):
            rows.append(_step(student, teacher, batch, penalty, optimiser))
            after()
    return float(np.mean(rows[-LAST:]))


def student_and_teacher(model: GatedModel, method: str) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Two graphs without dropout that share the model's tensors: only `method`'s gates act, and none act."""
    student = Chain(model.graph_module).then(FreezeRegularization())
    for name, other in model.methods.items():
        if name != method:
            student = student.then(*other.open_gates(student.graph))
    student.graph.train(mode=False)
    teacher = student.then(*model.methods[method].open_gates(student.graph))
    return student.graph, teacher.graph


@contextmanager
def _only_these_train(model: GatedModel, student: fx.GraphModule, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Gates of the student in training mode, every other module and parameter as in serving."""
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    gates = [module for module in student.modules() if isinstance(module, GATE_MODULES)]
    modes = {module: module.training for module in gates}
    try:
        for parameter in flags:
            parameter.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
        for gate in gates:
            gate.train()
        yield
    finally:
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
        for gate in gates:
            gate.train(modes[gate])


def _step(
    student: fx.GraphModule,
    teacher: fx.GraphModule,
    batch: Mapping[str, Tensor],
    penalty: Callable[[], Tensor | None],
    optimiser: torch.optim.Optimizer | None,
) -> float:
    inputs = signature_of(student).arrange(batch)
    with torch.no_grad():
        wanted = teacher(*inputs)
    divergence = output_divergence(wanted, student(*inputs), batch.get(ATTENTION_MASK))
    term = penalty()
    if optimiser is not None:
        optimiser.zero_grad()
    torch.autograd.backward(divergence if term is None else divergence + term)
    if optimiser is None:
        return float(divergence.detach())
    nn.utils.clip_grad_norm_(optimiser.param_groups[0]["params"], _CLIP)
    optimiser.step()
    return float(divergence.detach())


@torch.no_grad()
def mean_divergence(student: fx.GraphModule, teacher: fx.GraphModule, data: Sequence[Mapping[str, Tensor]]) -> float:
    """Mean over batches of `output_divergence` between two graphs with one signature.

    Where the student drops tokens of a decoder's prompt, only the last token's answers count.
    """
    signature = signature_of(student)
    drops = bool(find_selections(student))
    rows = []
    for batch in data:
        inputs = signature.arrange(batch)
        mask = batch.get(ATTENTION_MASK)
        counted = answered_tokens(student, mask) if drops else mask
        rows.append(float(output_divergence(teacher(*inputs), student(*inputs), counted)))
    return float(np.mean(rows))


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
