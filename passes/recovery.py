"""Recover: examples whose masked prediction is more uncertain than full predictions are run again with every token.

    answers ─▶ entropy of softmax(logits) > bound ─▶ those rows again with share = 1 ─▶ their answers instead

One graph does both, as the share is a tensor of it. The bound is a quantile of the full model's own entropies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from .graph.edit import get_tensor
from .program import GraphProgram

QUANTILE = 0.99
_CLASSES = 2  # axes of (B, classes)


@dataclass(frozen=True)
class Recovery:
    """When to run examples again, and how.

    Attributes:
        output: the logits, (B, classes); bound: entropy in nats; buffer: the share's name in the graph.
    """

    output: str
    bound: float
    buffer: str

    def spiking(self, answers: Mapping[str, Tensor]) -> Tensor:
        """Which examples to run again, (B,) bool."""
        return entropy(answers[self.output]) > self.bound


def entropy(logits: Tensor) -> Tensor:
    """Of every example's prediction in nats: (B, classes) → (B,)."""
    logs = logits.double().log_softmax(-1)
    return -(logs.exp() * logs).sum(-1)


def entropy_bound(answers: Sequence[Mapping[str, Tensor]], output: str) -> float | None:
    """P99 of the full model's entropies; None where the output is no classification."""
    logits = [answer[output] for answer in answers if output in answer]
    if not logits or logits[0].dim() != _CLASSES:
        return None
    return float(torch.quantile(torch.cat([entropy(rows) for rows in logits]), QUANTILE))


class RecoveringProgram(GraphProgram):
    """A program that runs examples again where their prediction spikes.

    Attributes:
        recovery: None recovers nothing; recovered: how many examples were run again so far.
    """

    recovery: Recovery | None = None
    recovered: int = 0

    def run(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        """The graph's answers, recovered."""
        answers = super().run(tensors)
        if self.recovery is None:
            return answers
        rows = self.recovery.spiking(answers).nonzero().flatten()
        if not len(rows):
            return answers
        self.recovered += len(rows)
        again = _with_every_token(self.graph_module, self.recovery.buffer, [value[rows] for value in tensors])
        return {name: value.index_copy(0, rows, again[name]) for name, value in answers.items()}


def _with_every_token(graph_module: fx.GraphModule, buffer: str, tensors: Sequence[Tensor]) -> Mapping[str, Tensor]:
    share = get_tensor(graph_module, buffer)
    standing = share.clone()
    share.fill_(1.0)
    try:
        answers: Mapping[str, Tensor] = graph_module(*tensors)
        return answers
    finally:
        share.copy_(standing)
