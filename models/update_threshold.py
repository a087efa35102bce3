"""Gates that skip an adapter's update at tokens where it is small beside what the layer answers (TS-PEFT).

    h_i = W0 x_i + 1[r_i ≥ τ]·M(x_i)        r_i = ‖M(x_i)‖₂ / ‖W0 x_i‖₂                Eq. 2 and 3

Axes: B examples, * the axes between batch and features (T for tokens; none for a state pooled per example), d_out
features of the layer's answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .configs.tspeft import TSPEFT
from .gradient_sink import GradientSink
from .threshold_optimizer import consistent_influence, threshold_step

#: What backward leaves in a threshold's sink.
_ARRIVES = ("the consistent influence of Eq. 15", "tokens that took the update", "real tokens")


@dataclass(frozen=True)
class ThresholdRecord:
    """What a threshold saw in its last call; no gradient.

    Attributes:
        ratio: r, (B, *), in at least float32; taken: which tokens took the update, (B, *) bool.
        real: (B, *) 1 at real tokens, 0 at padding.
    """

    ratio: Tensor
    taken: Tensor
    real: Tensor


def norms(update: Tensor, base: Tensor) -> tuple[Tensor, Tensor]:
    """(‖M(x)‖₂, ‖W0 x‖₂) of every token, (B, *) each, in at least float32, without gradient."""
    precision = torch.promote_types(update.dtype, torch.float32)
    return update.detach().to(precision).norm(dim=-1), base.detach().to(precision).norm(dim=-1)


class UpdateThreshold(nn.Module):
    """τ of one adapter, in training. Not a parameter: `move` changes it, no optimiser does.

    The gradient of the gate that multiplies the update is Eq. 9's μ_i = Σ_j ∂ℓ/∂h_ij·M(x_i)_j, of skipped tokens too,
    and nothing but ∂ℓ/∂h is needed for it; what τ needs of it is summed up in `sink`.

    Args:
        config: the method's options; budget: share of tokens×sites to train towards, None for τ alone.
    """

    tau: Tensor
    first_moment: Tensor
    second_moment: Tensor
    updates: Tensor
    level: Tensor

    def __init__(self, config: TSPEFT, *, budget: float | None) -> None:
        super().__init__()
        self.config = config
        self.budget = budget
        self.register_buffer("tau", torch.tensor(0.0))
        self.register_buffer("first_moment", torch.tensor(0.0))
        self.register_buffer("second_moment", torch.tensor(0.0))
        self.register_buffer("updates", torch.tensor(0))
        # What a budget adds to the τ of every site; 0 without one.
        self.register_buffer("level", torch.tensor(0.0))
        self.record: ThresholdRecord | None = None
        self.sink = GradientSink((len(_ARRIVES),))

    def __getstate__(self) -> dict[str, object]:
        """Copies and pickles leave behind what the last batch showed."""
        return {**self.__dict__, "record": None}

    def extra_repr(self) -> str:
        """What the printed graph should show of a threshold."""
        return f"tau={float(self.tau):.4g}, level={float(self.level):.4g}, budget={self.budget}"

    def excess(self, update: Tensor, base: Tensor) -> Tensor:
        """r − τ of every token: update and base (B, *, d_out) → (B, *)."""
        return _ratio(*norms(update, base)) - self.tau

    def forward(self, update: Tensor, base: Tensor, mask: Tensor | None = None) -> Tensor:
        """1[r ≥ τ]·M(x): update and base (B, *, d_out), mask (B, T) for the record → (B, *, d_out)."""
        size, whole = norms(update, base)
        taken = takes(size, whole, self.tau, self.level)
        real = torch.ones_like(size) if mask is None else mask.to(size.dtype)
        self.record = ThresholdRecord(_ratio(size, whole), taken, real)
        gate = taken.to(update.dtype).unsqueeze(-1)
        if self.training and torch.is_grad_enabled():
            gate = _Influence.apply(gate, self.sink(), taken, real)  # type: ignore[no-untyped-call]  # torch's
        return update * gate

    @property
    def gradient(self) -> Tensor | None:
        """g of Eq. 15 summed since the last move, (); None where no backward has arrived."""
        return None if self.sink.arrived is None else self._gradient(self.sink.arrived)

    def _gradient(self, arrived: Tensor) -> Tensor:
        gradient: Tensor = arrived[0] + self.config.sparsity_weight * arrived[1]
        return gradient

    def move(self, step: float) -> float | None:
        """One update of τ by the gradients since the last one; the share of tokens that took the update meanwhile.

        Nothing moves, and the answer is None, where no backward has arrived.
        """
        arrived = self.sink.take()
        if arrived is None:
            return None
        gradient, (_, taken, real) = self._gradient(arrived).to(self.tau.dtype), arrived
        threshold_step(self.tau, self.first_moment, self.second_moment, self.updates, gradient, step, self.config)
        return float(taken / real.clamp_min(1))


class _Influence(torch.autograd.Function):
    """The gate as it is; backward, what τ needs of the gate's gradient goes to the sink, and no further."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, sink: Tensor, taken: Tensor, real: Tensor) -> Tensor:  # noqa: ARG004  # the sink takes part for its gradient alone
        """The gate (B, *, 1); taken, real: (B, *)."""
        ctx.save_for_backward(taken, real)
        return gate.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None, None]:
        """The sink's gradient: what `_ARRIVES` names."""
        taken, real = ctx.saved_tensors
        influence = gradient.squeeze(-1).to(real.dtype)
        found = consistent_influence(influence, taken, real)
        arrived = torch.stack([found, (taken * real).sum(), real.sum()])
        return None, arrived.to(torch.float64), None, None


class HardUpdateThreshold(nn.Module):
    """The deployed threshold: tokens below it keep what the layer answers. Written as the paper has it: M is known."""

    def __init__(self, threshold: UpdateThreshold) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, update: Tensor, base: Tensor, level: Tensor) -> Tensor:
        """1[r ≥ max(0, τ + level)]·M(x): update and base (B, *, d_out), level () → (B, *, d_out)."""
        taken = takes(*norms(update, base), self.threshold.tau, level)
        return torch.where(taken.unsqueeze(-1), update, 0.0)


def takes(size: Tensor, whole: Tensor, tau: Tensor, level: Tensor) -> Tensor:
    """Which tokens take the update: size ‖M(x)‖ and whole ‖W0 x‖ (B, *), tau and level () → (B, *) bool.

    Compared without a quotient: at a threshold of zero every token takes it, also where the layer answers zero.
    """
    return size >= (tau + level).clamp_min(0) * whole


def _ratio(size: Tensor, whole: Tensor) -> Tensor:
    """r, finite also where the layer answers zero, however large the update is."""
    numbers = torch.finfo(whole.dtype)
    return (size / whole.clamp_min(numbers.tiny)).clamp_max(numbers.max)
