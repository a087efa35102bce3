"""Gates on whole updates, one number per token: a modulation while training, its hard or soft form when deployed.

Axes: B examples, * the axes between batch and features (T for tokens; none for a state pooled per example, whose gate
then is one per example), d features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .configs.gatera import GateRA

_TOKEN_AXES = 3


@dataclass(frozen=True)
class ModulationRecord:
    """What a modulation decided in one call, for objectives and diagnostics; differentiable.

    Attributes:
        logits: wᵀx + b, (B, *), in at least float32.
        real: (B, *) 1 at real tokens, 0 at padding.
    """

    logits: Tensor
    real: Tensor

    @property
    def gate(self) -> Tensor:
        """g = σ(logits), (B, *)."""
        return torch.sigmoid(self.logits)

    @property
    def count(self) -> Tensor:
        """Number of real tokens, ()."""
        return self.real.sum()

    @property
    def mean(self) -> Tensor:
        """Mean g over real tokens, ()."""
        return self.total_gate() / self.count.clamp_min(1)

    @property
    def entropy(self) -> Tensor:
        """Mean H(g) over real tokens in nats, ()."""
        return self.total_entropy() / self.count.clamp_min(1)

    def total_gate(self) -> Tensor:
        """Sum of g over real tokens, ()."""
        return (self.gate * self.real).sum()

    def total_entropy(self) -> Tensor:
        """Sum over real tokens of H(g) = −g ln g − (1 − g) ln(1 − g) in nats, ()."""
        return (binary_entropy(self.logits) * self.real).sum()


def binary_entropy(logits: Tensor) -> Tensor:
    """H(σ(z)) in nats, elementwise; softplus(z) − z·σ(z) stays finite where ln σ(z) does not."""
    return nn.functional.softplus(logits) - logits * torch.sigmoid(logits)


class Modulation(nn.Module):
    """g(x) = σ(wᵀx + b), one number per token (GateRA), or of a small MLP where `gate_hidden` > 0.

    It starts as one half for every token: w = 0, b = 0. The last call is recorded, apart for prefill (several tokens,
    or a pooled state) and decoding (one token).

    Args:
        config: the method's options; width: d; budget: mean g to train towards, None for none.
    """

    multiplier: Tensor
    updates: Tensor
    level: Tensor

    def __init__(self, config: GateRA, *, width: int, budget: float | None) -> None:
        super().__init__()
        self.config = config
        self.budget = budget
        hidden = config.gate_hidden
        self.hidden = nn.Linear(width, hidden) if hidden else None
        self.score = nn.Linear(hidden or width, 1)
        if self.hidden is not None:
            nn.init.xavier_uniform_(self.hidden.weight)
            nn.init.zeros_(self.hidden.bias)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)
        self.register_buffer("multiplier", torch.tensor(0.0))
        self.register_buffer("updates", torch.tensor(0))
        # The deployed threshold as a logit, once a deployment has calibrated it; infinite before.
        self.register_buffer("level", torch.tensor(torch.inf))
        self.prefill: ModulationRecord | None = None
        self.decode: ModulationRecord | None = None
        self.record: ModulationRecord | None = None

    def has_moved(self) -> bool:
        """Whether the gate is no longer the one half that it starts as, also after casts and files."""
        return bool(self.score.weight.detach().any()) or bool(self.score.bias.detach().any())

    def __getstate__(self) -> dict[str, object]:
        """Copies and pickles leave the last batch's records behind: they hold a graph of gradients."""
        return {**self.__dict__, "prefill": None, "decode": None, "record": None}

    def extra_repr(self) -> str:
        """What the printed graph should show of a modulation."""
        return f"update={self.config.update}, budget={self.budget}"

    def logits(self, x: Tensor) -> Tensor:
        """wᵀx + b: x (B, *, d) → (B, *), in at least float32."""
        state = x if self.hidden is None else nn.functional.gelu(self.hidden(x))
        score: Tensor = self.score(state).squeeze(-1)
        return score.to(torch.promote_types(score.dtype, torch.float32))

    def constant(self) -> float | None:
        """g where it is the same number for every x: its weights are zero. None where it varies."""
        if bool(self.score.weight.detach().any()):
            return None
        return float(torch.sigmoid(self.score.bias.detach().double()))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """g(x): x (B, *, d), mask (B, T) of the same tokens, read for the record alone → (B, *, 1)."""
        logits = self.logits(x)
        real = torch.ones_like(logits) if mask is None else mask.to(logits.dtype)
        self.record = ModulationRecord(logits, real)
        if x.dim() == _TOKEN_AXES and x.shape[1] == 1:
            self.decode = self.record
        else:
            self.prefill = self.record
        return torch.sigmoid(logits).to(x.dtype).unsqueeze(-1)

    def observe(self, mean: float) -> None:
        """One update of the multiplier after an optimiser step: λ ← λ + η_λ·(mean g − budget)."""
        if self.budget is not None:
            self.multiplier.add_(self.config.penalty_rate * (mean - self.budget))
        self.updates.add_(1)


class SoftModulation(nn.Module):
    """The deployed soft gate: a modulation's g, and nothing recorded."""

    def __init__(self, modulation: Modulation) -> None:
        super().__init__()
        self.modulation = modulation

    def constant(self) -> float | None:
        """See `Modulation.constant`."""
        return self.modulation.constant()

    def forward(self, x: Tensor) -> Tensor:
        """g(x): x (B, *, d) → (B, *, 1)."""
        return torch.sigmoid(self.modulation.logits(x)).to(x.dtype).unsqueeze(-1)


class HardModulation(nn.Module):
    """The deployed hard gate: which tokens take the update.

    Thresholds are compared as logits, so that gates that all round to 1 still have an order.
    """

    def __init__(self, modulation: Modulation) -> None:
        super().__init__()
        self.modulation = modulation

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """1[g(x) ≥ θ]: x (B, *, d), level () = ln(θ / (1 − θ)) → (B, *) bool."""
        return self.modulation.logits(x) >= level
