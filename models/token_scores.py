"""What LoRA does to every token: the norm of its shift, layer by layer, and one score made of them (MaskLoRA §2.2, C).

Axes: B examples, T tokens, L scored layers, d_out features of a site, r rank directions of its adapter.

    u (B,T,r), B (d_out,r), s   ─▶   ‖s·B u‖² = s²·uᵀ(BᵀB)u                    exact, O(r²) a token
    sites of one layer          ─▶   s_ℓ = √(Σ of squares)                      (B,T)
    layers                      ─▶   clip at P99.5 ─▶ ŝ_ℓ = s_ℓ/(ε + mean over real tokens) ─▶ mean or max over ℓ
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

EPSILON = 1e-6
CLIP_QUANTILE = 0.995  # P99.5, appendix C


def shift_squares(u: Tensor, lora_b: Tensor) -> Tensor:
    """‖B u‖² of every token through the Gram matrix G = BᵀB: u (B,T,r), lora_b (d_out,r) → (B,T), at least float32."""
    precision = torch.promote_types(u.dtype, torch.float32)
    u, lora_b = u.to(precision), lora_b.to(precision)
    gram = lora_b.t() @ lora_b
    return ((u @ gram) * u).sum(-1).clamp_min(0.0)


class LayerShift(nn.Module):
    """s_{i,ℓ} of one layer, from the low-rank paths of its sites alone.

    Args:
        scales: s of every site; factors: how many gates multiply each site's update.
    """

    def __init__(self, scales: tuple[float, ...], factors: tuple[int, ...]) -> None:
        super().__init__()
        self.scales = scales
        self.factors = factors

    def extra_repr(self) -> str:
        """What the printed graph should show."""
        return f"sites={len(self.scales)}"

    def forward(self, *tensors: Tensor) -> Tensor:
        """√Σ‖s·B u‖², (B,T). `tensors`: site after site u (B,T,r), B (d_out,r), and its factors, (B,T,1) or ()."""
        given = list(tensors)
        squares = []
        for scale, count in zip(self.scales, self.factors, strict=True):
            u, lora_b, *rest = given[: 2 + count]
            del given[: 2 + count]
            square = shift_squares(u, lora_b) * scale**2
            for factor in rest:
                square = square * (factor if factor.dim() == 0 else factor.squeeze(-1)).to(square.dtype).square()
            squares.append(square)
        return torch.stack(squares).sum(0).sqrt()


class LogitShift(nn.Module):
    """‖Δα_i‖₂ of one layer's attention logits, restricted to the rank-r factors (§4.1): no (T,T) matrix is built.

    Δα_ij = s_q s_k/√e · (B_q u_i)·(B_k v_j), so with C = B_qᵀB_k and M = Σ_j v_j v_jᵀ its row has the norm
    s_q s_k/√e · √(uᵀ C M Cᵀ u). What adapters do to the base's own q and k is left out: that takes q and k.

    Args:
        scale: s_q·s_k; heads: h; how: over heads, "mean" or "max".
    """

    def __init__(self, scale: float, heads: int, how: str) -> None:
        super().__init__()
        self.scale = scale
        self.heads = heads
        self.how = how

    def forward(self, mask: Tensor | None, u: Tensor, lora_q: Tensor, v: Tensor, lora_k: Tensor) -> Tensor:
        """(B,T): mask (B,T) of real keys or None; u, v (B,T,r) of query and key; lora_q, lora_k (d,r)."""
        precision = torch.promote_types(u.dtype, torch.float32)
        u, v, lora_q, lora_k = (value.to(precision) for value in (u, v, lora_q, lora_k))
        keys = v if mask is None else v * mask.to(precision).unsqueeze(-1)
        moment = keys.transpose(1, 2) @ v  # (B,r,r)
        width = lora_q.shape[0] // self.heads
        per_q, per_k = (b.reshape(self.heads, width, b.shape[1]) for b in (lora_q, lora_k))
        core = per_q.transpose(1, 2) @ per_k  # (h,r,r)
        spread = torch.einsum("btr,hrs->bhts", u, core)
        squares = ((spread @ moment.unsqueeze(1)) * spread).sum(-1).clamp_min(0.0)
        norms: Tensor = squares.sqrt() * (self.scale / math.sqrt(width))
        return norms.mean(1) if self.how == "mean" else norms.amax(1)


def clip_levels(shifts: Tensor, real: Tensor) -> Tensor:
    """P99.5 of each layer over real tokens: shifts (L,B,T), real (B,T) → (L,)."""
    return real_quantile(shifts.flatten(1), real.flatten(), CLIP_QUANTILE)


def real_quantile(values: Tensor, real: Tensor, share: float) -> Tensor:
    """The quantile F⁻¹(share) over real tokens: values (…, N), real (N,) → (…); NaN where none is real.

    The tokens are not gathered, for torch.compile would not know their number.
    """
    return torch.nanquantile(torch.where(real > 0, values, torch.nan), share, dim=-1)


def normalized(shifts: Tensor, real: Tensor, cap: Tensor | None = None) -> Tensor:
    """ŝ_{i,ℓ} = s/(ε + mean over the example's real tokens), s clipped at `cap` first: (…,B,T), 0 at padding.

    Args:
        shifts: (L,B,T) or (B,T); real: (B,T), zero at padding and at tokens that are gone; cap: (L,) or ().
    """
    if cap is not None:
        shifts = torch.minimum(shifts, cap.to(shifts.dtype).view(*cap.shape, *(1,) * (shifts.dim() - cap.dim())))
    real = (real > 0).to(shifts.dtype)
    mean = (shifts * real).sum(-1, keepdim=True) / real.sum(-1, keepdim=True).clamp_min(1)
    return shifts * real / (EPSILON + mean)


def aggregated(scores: Tensor, how: str, kinds: int = 1) -> Tensor:
    """ŝ_i over the scored layers, "mean" or "max": (kinds·L,B,T) → (B,T); several kinds of influence first by mean."""
    scores = scores.reshape(kinds, -1, *scores.shape[1:]).mean(0)
    return scores.mean(0) if how == "mean" else scores.amax(0)


class PathScore(nn.Module):
    """ŝ from the layers before a cut, the only ones known there.

    Args:
        layers: L; how: aggregation.
    """

    cap: Tensor

    def __init__(self, layers: int, how: str) -> None:
        super().__init__()
        self.how = how
        self.register_buffer("cap", torch.full((layers,), torch.inf))

    def forward(self, mask: Tensor | None, *shifts: Tensor) -> Tensor:
        """ŝ (B,T): mask (B,T) or None, shifts L times (B,T)."""
        stacked = torch.stack(shifts)
        real = torch.ones_like(stacked[0]) if mask is None else mask
        return aggregated(normalized(stacked, real, self.cap), self.how)
