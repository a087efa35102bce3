"""The gate on tokens at one cut: hard-concrete on LoRA's shift while training, the deployed choice in eval mode.

Axes: B examples, T tokens, d channels.

    training   φ = a·(ŝ − κ − b) ─▶ m̃ = HardConcrete(φ, τ)        ŝ of the full forward that came before
    eval       ŝ predicted from the state (or of the layers before) ─▶ the ⌈ρ·n⌉ largest
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from .configs.masklora import MaskLoRA
from .gate_functions import hard_concrete_gate
from .score_predictor import ScorePredictor, log_score
from .token_scores import real_quantile
from .token_selection import kept_counts, priorities, tokens_of_share, top_mask


@dataclass(frozen=True)
class TokenRecord:
    """What a gate decided in one call, for objectives and diagnostics; differentiable.

    Attributes:
        scores: ŝ (B,T); gate: m̃ (B,T); open: P(m̃ > ½) = σ(φ) (B,T), one at tokens that must stay.
        alive: what reached the cut, (B,T) in [0, 1]; real: (B,T) 1 at real tokens, 0 at padding.
        predicted: log ŝ as predicted from the state, (B,T).
    """

    scores: Tensor
    gate: Tensor
    open: Tensor
    alive: Tensor
    real: Tensor
    predicted: Tensor

    @property
    def share(self) -> Tensor:
        """Expected share of the real tokens that the cut keeps, ()."""
        return (self.open * self.alive * self.real).sum() / self.real.sum().clamp_min(1)

    @property
    def dropped_score(self) -> Tensor:
        """Σ ŝ(1 − m̃)/T over real tokens, (), the bound of Proposition 3.3; m̃ with what earlier cuts left."""
        lost = self.scores * (1 - self.gate * self.alive) * self.real
        return lost.sum() / self.real.sum().clamp_min(1)

    @property
    def predictor_error(self) -> Tensor:
        """Mean squared error of the predicted log ŝ over real tokens, ()."""
        known = self.real * (self.scores > 0)
        return ((self.predicted - log_score(self.scores.detach())).square() * known).sum() / known.sum().clamp_min(1)


@dataclass(frozen=True)
class SharePoint:
    """Which share of the original tokens a cut keeps.

    Attributes:
        now: at the model's budget; share, budget: what the schedule says, from which other budgets follow.
    """

    now: float
    share: float
    budget: float

    def table(self) -> tuple[tuple[float, float], ...]:
        """(budget, share) points: everything at 1, nothing at 0, the schedule's between, lines elsewhere."""
        if self.budget >= 1:
            return ((0.0, 0.0), (1.0, 1.0))
        return ((0.0, 0.0), (self.budget, self.share), (1.0, 1.0))

    def at(self, budget: float) -> float:
        """The share at another budget."""
        budgets, shares = zip(*self.table(), strict=True)
        return float(np.interp(budget, budgets, shares))


class TokenGate(nn.Module):
    """m̃ of every token at one cut (MaskLoRA §2.3).

    E‖m̃‖₀ is counted as Σ P(m̃ > ½), which is what a hard gate keeps at any τ. (The paper says Σ m̃; P(m̃ > 0), the
    usual count, is 0.99 for a token right at the cutoff while τ is 2, and would train against the budget.)

    κ follows the running quantile of ŝ at which the cut keeps its share, so that b stays a small correction: the
    paper's "map target ρ → κ via the empirical CDF" in every step of training.

    Args:
        config: the options; layer: the cut's; width: d; kept: positions that must stay.
        share: which share of the original tokens this cut keeps; layers: L, how many are scored.
    """

    cutoff: Tensor
    cap: Tensor
    temperature: Tensor
    multiplier: Tensor
    updates: Tensor

    def __init__(
        self, config: MaskLoRA, *, layer: int, width: int, kept: tuple[int, ...], share: SharePoint, layers: int
    ) -> None:
        super().__init__()
        self.config = config
        self.layer = layer
        self.kept = kept
        self.shares = share
        self.share = share.now
        self.predictor = ScorePredictor(width, config.predictor_width)
        self.log_sharpness = nn.Parameter(torch.tensor(math.log(config.sharpness)))
        self.offset = nn.Parameter(torch.tensor(0.0))
        self.register_buffer("cutoff", torch.tensor(torch.inf))
        self.register_buffer("cap", torch.full((layers,), torch.inf))
        self.register_buffer("temperature", torch.tensor(config.temperature))
        self.register_buffer("multiplier", torch.tensor(0.0))
        self.register_buffer("updates", torch.tensor(0))
        self.full: Tensor | None = None
        self.record: TokenRecord | None = None

    def __getstate__(self) -> dict[str, object]:
        """Copies and pickles leave the last batch behind: it holds a graph of gradients."""
        return {**self.__dict__, "full": None, "record": None}

    def extra_repr(self) -> str:
        """What the printed graph should show of a gate."""
        return f"after layer {self.layer}, keeps {self.share:g}, scores={self.config.scores}"

    def logits(self, scores: Tensor) -> Tensor:
        """φ = a·(ŝ − κ − b), (B,T)."""
        return self.log_sharpness.exp() * (scores - self.cutoff - self.offset)

    def must_stay(self, alive: Tensor, protected: Tensor | None) -> Tensor:
        """Positions that heads read, and protected tokens that are real: (B,T) bool."""
        return must_stay(self.kept, alive, protected)

    def forward(
        self,
        state: Tensor,
        mask: Tensor | None = None,
        protected: Tensor | None = None,
        path: Tensor | None = None,
        real: Tensor | None = None,
    ) -> Tensor:
        """m̃, (B,T).

        Args:
            state: (B,T,d); mask: (B,T) what is left of the real tokens; protected: (B,T) bool, tokens that must stay.
            path: ŝ of the layers before, (B,T); real: (B,T) the real tokens, where that is not `mask`.
        """
        predicted = self.predictor(state.detach())
        alive = torch.ones_like(predicted) if mask is None else mask.to(predicted.dtype)
        original = alive if real is None else real.to(predicted.dtype)
        must = self.must_stay(alive > 0, protected)
        known = path if self.config.scores == "path" else self.full if self.training else None
        scores = (predicted.exp() if known is None else known).to(predicted.dtype)
        if self.config.stop_gradient:
            scores = scores.detach()
        if not self.training:
            return self._choice(scores, alive > 0, must, original.sum(-1)).to(state.dtype)
        self._follow(scores.detach(), original)
        logits = self.logits(scores)
        gate = hard_concrete_gate(logits, self.temperature, sample=True)
        gate = torch.where(must, 1.0, gate)
        opened = torch.where(must, 1.0, torch.sigmoid(logits))
        self.record = TokenRecord(scores, gate, opened, alive, original, predicted)
        return gate.to(state.dtype)

    @torch.no_grad()
    def _follow(self, scores: Tensor, real: Tensor) -> None:
        """Move κ towards the batch's own F⁻¹(1 − ρ)."""
        level = real_quantile(scores.flatten(), real.flatten(), 1 - self.share)
        self.cutoff.copy_(_smoothed(self.cutoff, level, self.config.momentum))

    @torch.no_grad()
    def observe_clip(self, levels: Tensor) -> None:
        """Move the running P99.5 of every scored layer towards a batch's, (L,)."""
        self.cap.copy_(_smoothed(self.cap, levels, self.config.momentum))

    def _choice(self, scores: Tensor, alive: Tensor, must: Tensor, total: Tensor) -> Tensor:
        wanted = tokens_of_share(torch.full_like(total, self.share), total)
        counts = kept_counts(wanted, total=total, alive=alive, must=must, floor=self.config.floor)
        return top_mask(priorities(scores, alive, must), counts)


def must_stay(kept: tuple[int, ...], alive: Tensor, protected: Tensor | None) -> Tensor:
    """(B,T) bool: positions `kept`, 0 from the start and -1 from the end, whatever they hold; protected tokens left."""
    places = torch.arange(alive.shape[-1], device=alive.device)
    places = torch.stack([places, places - alive.shape[-1]])
    must = torch.zeros_like(places[0], dtype=torch.bool)
    for position in kept:
        must = must | (places == position).any(0)
    must = must.expand_as(alive)
    return must if protected is None else must | (protected & alive)


def _smoothed(running: Tensor, value: Tensor, momentum: float) -> Tensor:
    """β·running + (1 − β)·value; the value itself where nothing ran yet (infinite), or adapters were still zero.

    A value of no tokens, NaN, leaves what ran as it is.
    """
    value = value.to(running)
    moved = torch.where(running.isinf() | (running == 0), value, running.lerp(value, 1 - momentum))
    return torch.where(value.isnan(), running, moved)
