"""Pooling of token states into one vector per example, over real tokens only (CCM-LoRA §2.3, appendix D.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .configs.ccm import Pool


class StatePool(nn.Module):
    """(B, T, d) states and a (B, T) mask of real tokens → (B, d).

    Args:
        kind: "mean", "max", "attention" (a learned query), or "cls" (the first real token).
        width: d.
        prefix: pool only the first `prefix` real tokens.
    """

    def __init__(self, kind: Pool, *, width: int, prefix: int | None = None) -> None:
        super().__init__()
        self.kind = kind
        self.prefix = prefix
        if kind == "attention":
            self.query = nn.Parameter(torch.zeros(width))

    def extra_repr(self) -> str:
        """Kind and prefix."""
        return f"{self.kind}, prefix={self.prefix}"

    def forward(self, state: Tensor, mask: Tensor | None) -> Tensor:
        """The pooled state; a state without a token axis, (B, d), is its own pool."""
        if state.dim() == 2:  # noqa: PLR2004  # (B, d)
            return state
        flat = state.flatten(1, -2)
        real = torch.ones_like(flat[..., 0], dtype=torch.bool) if mask is None else mask.to(torch.bool)
        if self.prefix is not None:
            real = real & (torch.cumsum(real.to(torch.int64), dim=1) <= self.prefix)
        return self._pool(flat, real)

    def _pool(self, state: Tensor, real: Tensor) -> Tensor:
        weight = real.to(state.dtype)
        if self.kind == "mean":
            return _weighted_mean(state, weight)
        if self.kind == "max":
            # A row without real tokens pools to zero instead of minus infinity.
            least = torch.finfo(state.dtype).min
            top = state.masked_fill(~real.unsqueeze(-1), least).amax(1)
            return torch.where(real.any(1, keepdim=True), top, torch.zeros_like(top))
        if self.kind == "cls":
            first = real & (torch.cumsum(real.to(torch.int64), dim=1) == 1)
            return (state * first.to(state.dtype).unsqueeze(-1)).sum(1)
        affinity = state @ self.query / state.shape[-1] ** 0.5
        affinity = affinity.masked_fill(~real, torch.finfo(state.dtype).min)
        return _weighted_mean(state, torch.softmax(affinity, dim=1) * weight)


def _weighted_mean(state: Tensor, weight: Tensor) -> Tensor:
    """One matrix product: multiply-and-sum reads the states twice, and engines run it several times slower."""
    total = weight.sum(1, keepdim=True).clamp_min(torch.finfo(state.dtype).tiny)
    return ((weight / total).unsqueeze(1) @ state).squeeze(1)
