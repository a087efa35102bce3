"""The weight of a whole adapter while it is being chosen or dropped (WeightLoRA, Eq. 2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .gradient_sink import GradientSink


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
        self.sink = GradientSink()

    def extra_repr(self) -> str:
        """What the printed graph should show of a weight."""
        return f"omega={float(self.omega):.4g}, frozen={bool(self.frozen)}"

    def forward(self) -> Tensor:
        """ω, (); its gradient is kept until `take_gradient`."""
        if not self.training or not torch.is_grad_enabled():
            return self.omega
        weight: Tensor = self.omega + self.sink().to(self.omega.dtype)
        return weight

    def take_gradient(self) -> Tensor:
        """∂ℓ/∂ω summed since the last call, (); zero where there was none."""
        found = self.sink.take()
        return torch.zeros_like(self.omega) if found is None else found.to(self.omega.dtype)

    def freeze(self, *, keep: bool) -> None:
        """End the choice: a site that stays is plain LoRA (ω = 1, phase 2 of §2), one that goes has ω = 0."""
        self.omega.fill_(float(keep))
        self.frozen.fill_(value=True)
        self.sink.take()
