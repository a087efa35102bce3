"""The weight of a whole adapter while it is being chosen or dropped (WeightLoRA, Eq. 2), and the step that chooses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class AdapterWeight(nn.Module):
    """ω of one site: its update is multiplied by it. Not a parameter: StoIHT moves it, no optimiser does.

    A dropped site (ω = 0) still gets its gradient until the choice is frozen, so that it may come back.
    """

    omega: Tensor
    updates: Tensor
    frozen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("omega", torch.tensor(1.0))
        self.register_buffer("updates", torch.tensor(0))
        self.register_buffer("frozen", torch.tensor(False))
        self.gradient: Tensor | None = None

    def __getstate__(self) -> dict[str, object]:
        """Copies and pickles leave the last batch's gradient behind."""
        return {**self.__dict__, "gradient": None}

    def extra_repr(self) -> str:
        """What the printed graph should show of a weight."""
        return f"omega={float(self.omega):.4g}, frozen={bool(self.frozen)}"

    def forward(self) -> Tensor:
        """ω, (); its gradient is kept until `take_gradient`."""
        if bool(self.frozen) or not self.training or not torch.is_grad_enabled():
            return self.omega
        leaf = self.omega.detach().clone().requires_grad_()
        leaf.register_hook(self._receive)
        return leaf

    def take_gradient(self) -> Tensor:
        """∂ℓ/∂ω summed since the last call, (); zero where there was none."""
        found, self.gradient = self.gradient, None
        return torch.zeros_like(self.omega) if found is None else found

    def freeze(self, *, keep: bool) -> None:
        """End the choice: a site that stays counts as plain LoRA (ω = 1), one that goes has ω = 0."""
        self.omega.fill_(float(keep))
        self.frozen.fill_(value=True)
        self.gradient = None

    def _receive(self, gradient: Tensor) -> None:
        gradient = gradient.detach()
        self.gradient = gradient if self.gradient is None else self.gradient + gradient


@torch.no_grad()
def threshold_step(weights: Sequence[AdapterWeight], kept: int, rate: float) -> None:
    """One step of StoIHT (appendix B): ω ← H_K(ω − η g / rms(g)), in place.

    H_K zeroes all but the K entries of largest magnitude. Entries that tie with the K-th stay too: before the first
    gradient all are equal, and dropping some by their position would be no choice.
    """
    gradient = torch.stack([weight.take_gradient().float() for weight in weights])
    size = gradient.square().mean().sqrt()
    omega = torch.stack([weight.omega.float() for weight in weights])
    if float(size) > 0:
        omega = omega - rate * gradient / size
        least = omega.abs().sort(descending=True).values[kept - 1]
        omega = torch.where(omega.abs() >= least, omega, 0.0)
    for weight, value in zip(weights, omega, strict=True):
        weight.omega.copy_(value)
        weight.updates.add_(1)


def largest(scores: Sequence[float], kept: int) -> tuple[int, ...]:
    """The positions of the `kept` largest scores, ascending; of equal ones the earlier."""
    ranked = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
    return tuple(sorted(ranked[:kept]))
