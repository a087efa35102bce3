"""A place in the graph where a gradient arrives that no optimiser reads: thresholds and weights that own rules move.

It is a zero that takes part in the forward and requires a gradient, so that autograd adds up what arrives over
micro-batches, in eager mode and in compiled graphs alike; hooks on tensors that a forward makes do not compile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class GradientSink(nn.Module):
    """Zeros that collect a gradient. Neither a parameter nor a buffer: nothing trains it and nothing saves it.

    Args:
        size: of the gradient.
    """

    def __init__(self, size: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.size = size
        self.zeros = _zeros(size, torch.device("cpu"))

    def __getstate__(self) -> dict[str, object]:
        """Copies and pickles leave behind what arrived."""
        return {**self.__dict__, "zeros": _zeros(self.size, self.zeros.device)}

    def forward(self) -> Tensor:
        """The zeros, of `size`, in float64 where the device has it: sums of many tokens' gradients arrive here."""
        return self.zeros

    @property
    def arrived(self) -> Tensor | None:
        """The sum of the gradients since the last `take`; None where no backward reached it."""
        return self.zeros.grad

    def take(self) -> Tensor | None:
        """The same, and start anew."""
        found, self.zeros.grad = self.zeros.grad, None
        return found

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> GradientSink:
        """Follow the model to another device, with what arrived; the type stays."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's
        device = fn(self.zeros.detach()).device
        if device != self.zeros.device:
            arrived = self.zeros.grad
            self.zeros = _zeros(self.size, device)
            self.zeros.grad = None if arrived is None else arrived.to(self.zeros)
        return self


def _zeros(size: tuple[int, ...], device: torch.device) -> Tensor:
    dtype = torch.float32 if device.type == "mps" else torch.float64
    return torch.zeros(size, dtype=dtype, device=device, requires_grad=True)
