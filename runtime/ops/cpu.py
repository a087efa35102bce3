"""The gathered form of the gated operators, in plain torch: work is done for active rank directions only.

Axes as in `schema.py`; M is the product of the middle axes.
"""

from __future__ import annotations

from torch import Tensor


def gathered_gated_lora(
    base: Tensor, x: Tensor, lora_a: Tensor, lora_b: Tensor, indices: Tensor, scale: Tensor
) -> Tensor:
    """`gated_lora` (see `schema.py`) on the K leading columns of `indices`; never returns an alias of `base`."""
    active = indices >= 0
    most = int(active.sum(1).max()) if indices.shape[0] else 0
    if most == 0 or base.numel() == 0:
        return base.clone()
    indices = indices[:, :most]
    # One set of directions for the whole batch needs no factor per example: two GEMMs over all tokens.
    if indices.shape[0] == 1 or bool((indices == indices[:1]).all()):
        shared = indices[0]
        return _one_set(base, x, lora_a.index_select(0, shared), lora_b.index_select(1, shared), scale)
    chosen = indices.clamp(min=0)
    weight = (active[:, :most] * scale).unsqueeze(1)  # (B, 1, K)
    down = x.reshape(x.shape[0], -1, x.shape[-1]) @ lora_a[chosen].transpose(1, 2)  # (B, M, K)
    up = lora_b.t()[chosen]  # (B, K, d_out)
    flat_base = base.reshape(base.shape[0], -1, base.shape[-1])
    return flat_base.baddbmm(down * weight, up).view(base.shape)


def _one_set(base: Tensor, x: Tensor, lora_a: Tensor, lora_b: Tensor, scale: Tensor) -> Tensor:
    """`base + scale * B A x` for the (K, d_in) and (d_out, K) factors that all examples share."""
    down = x.reshape(-1, x.shape[-1]) @ lora_a.t()
    return base.reshape(-1, base.shape[-1]).addmm(down * scale, lora_b.t()).view(base.shape)
