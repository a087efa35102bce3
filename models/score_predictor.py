"""Scores of the whole network, predicted where a cut stands: LayerNorm → Linear(d, h) → GELU → Linear(h, 1).

The score of all layers needs a full forward, which leaves nothing to save; the state at the cut knows most of it.
Fitted by least squares to the logarithm of the score.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

LEAST_SCORE = 1e-3  # of a mean of one: below it a logarithm says more of rounding than of the token


class ScorePredictor(nn.Module):
    """log ŝ of every token from its state.

    Args:
        width: d; hidden: h.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.hidden = nn.Linear(width, hidden)
        self.score = nn.Linear(hidden, 1)
        # Every token scores the mean, ŝ = 1, until something was learned.
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)

    def forward(self, state: Tensor) -> Tensor:
        """state (…, d) → log ŝ (…)."""
        predicted: Tensor = self.score(nn.functional.gelu(self.hidden(self.norm(state)))).squeeze(-1)
        return predicted.to(torch.promote_types(predicted.dtype, torch.float32))


def log_score(scores: Tensor) -> Tensor:
    """What a predictor is fitted to."""
    return scores.clamp_min(LEAST_SCORE).log()


def fit_predictor(
    predictor: ScorePredictor, states: Tensor, scores: Tensor, *, steps: int, batch: int = 512, rate: float = 2e-3
) -> float:
    """Least squares in place; the mean squared error that is left.

    Args:
        states: (N, d) of real tokens; scores: ŝ (N,) of the same.
        steps: of Adam, on `batch` tokens drawn without replacement, pass after pass, by a generator of its own.
    """
    targets = log_score(scores).to(states.device)
    draw = torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(predictor.parameters(), lr=rate)
    decay = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.05, max(steps, 1))
    flags: Mapping[nn.Parameter, bool] = {p: p.requires_grad for p in predictor.parameters()}
    order = torch.empty(0, dtype=torch.int64)
    with torch.enable_grad():
        for parameter in flags:
            parameter.requires_grad_(True)
        for _ in range(steps):
            if not len(order):
                order = torch.randperm(len(states), generator=draw)
            chosen, order = order[:batch].to(states.device), order[batch:]
            error = (predictor(states[chosen]) - targets[chosen]).square().mean()
            optimiser.zero_grad()
            torch.autograd.backward(error)
            optimiser.step()
            decay.step()
    for parameter, flag in flags.items():
        parameter.requires_grad_(flag)
        parameter.grad = None
    with torch.no_grad():
        return float((predictor(states) - targets).square().mean())
