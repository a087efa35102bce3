"""The threshold's own optimiser (TS-PEFT, §3.3 and §3.4): a masked gradient, and Adam's moments.

    g = Σ_i { 1[1(μ_i ≥ 0) = 1(r_i ≥ τ)]·μ_i + 1(r_i ≥ τ)·λ }                          Eq. 15
    m ← β₁m + (1 − β₁)g     v ← β₂v + (1 − β₂)g²     m̂ = m/(1 − β₁ᵏ)     v̂ = v/(1 − β₂ᵏ)   Eq. 16 to 19
    τ ← max(0, τ + η·m̂/(√v̂ + ε))     η = α·s                                           Eq. 20

The sum runs over the real tokens of everything that one optimiser step saw: a batch, or all micro-batches of an
accumulated one, whose sum is the large batch's because the mask is each token's own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .configs.tspeft import TSPEFT


def consistent_influence(influence: Tensor, taken: Tensor, real: Tensor) -> Tensor:
    """The first sum of Eq. 15, (); the second is λ times the real tokens that took the update.

    Args:
        influence: μ (B, *); taken: 1(r ≥ τ), (B, *) bool; real: (B, *) 1 at real tokens.
    """
    consistent = (influence >= 0) == taken
    return (consistent * influence * real).sum()


@torch.no_grad()
def threshold_step(  # noqa: PLR0917  # the state, the gradient and the step of one Adam update
    tau: Tensor, first: Tensor, second: Tensor, updates: Tensor, gradient: Tensor, step: float, config: TSPEFT
) -> None:
    """One update of τ, its moments and its count, all () and in place."""
    updates.add_(1)
    count = int(updates)
    first.mul_(config.momentum).add_((1 - config.momentum) * gradient)
    second.mul_(config.decay).add_((1 - config.decay) * gradient.square())
    unbiased = first / (1 - config.momentum**count)
    size = (second / (1 - config.decay**count)).sqrt()
    tau.add_(step * unbiased / (size + config.epsilon)).clamp_min_(0)
