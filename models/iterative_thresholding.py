"""StoIHT: a gradient step on the adapters' weights, then the K largest stay (WeightLoRA, appendix B).

    ω̃ = ω − η·g          ω ← H_K(ω̃): all but the K entries of largest magnitude become zero

Two things the paper leaves open. η: here it is `rate` over the gradient's root mean square over the sites, so that it
does not depend on the loss's scale. Ties with the K-th magnitude: they stay until the choice is final, because before
the first gradient all weights are equal, and dropping some of them by their position would be no choice.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from .adapter_weight import AdapterWeight


def hard_threshold(values: Tensor, kept: int) -> Tensor:
    """H_K: values (n,) with all but the `kept` of largest magnitude, and what ties with the last of them, at zero."""
    least = values.abs().sort(descending=True).values[kept - 1]
    return torch.where(values.abs() >= least, values, 0.0)


@torch.no_grad()
def threshold_step(weights: Sequence[AdapterWeight], kept: int, rate: float) -> None:
    """One step of StoIHT in place, on the gradients that arrived since the last; none at all leaves ω as it is."""
    gradient = torch.stack([weight.take_gradient().float() for weight in weights])
    omega = torch.stack([weight.omega.float() for weight in weights])
    size = gradient.square().mean().sqrt()
    if float(size) > 0:
        omega = hard_threshold(omega - rate * gradient / size, kept)
    for weight, value in zip(weights, omega, strict=True):
        weight.omega.copy_(value)
        weight.updates.add_(1)


def largest(scores: Sequence[float], kept: int) -> tuple[int, ...]:
    """The positions of the `kept` largest scores, ascending; of equal ones the earlier."""
    ranked = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
    return tuple(sorted(ranked[:kept]))


def kept_overlap(first: Collection[str], second: Collection[str]) -> float:
    """|∩| / |∪| of the sites that two runs kept (figure 5); 1 for the same sets, two empty ones included."""
    union = set(first) | set(second)
    return len(set(first) & set(second)) / len(union) if union else 1.0
