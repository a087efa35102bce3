"""Random calls of the native layers with adapters, and what they mean in float64."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from gatefx.runtime.ops.reference import gated_lora_reference
from gatefx.runtime.ops.reference_updates import routed_linear_reference, token_gated_lora_reference

from .cases import Case

#: (B, middle axes, d_in, d_out, r): as for the updates, and more tokens than a task has, several parts of the columns,
#: sums over many states.
LINEAR_SHAPES = (
    (1, (1,), 1, 1, 1),
    (2, (), 5, 7, 3),
    (3, (0,), 8, 8, 2),
    (2, (1,), 33, 31, 5),
    (3, (7,), 17, 24, 6),
    (2, (3, 5), 64, 48, 16),
    (1, (53,), 130, 197, 7),
    (2, (50,), 96, 200, 64),
    (9, (50,), 24, 65, 4),
    (1, (5,), 2048, 130, 8),
)


@dataclass(frozen=True)
class LinearCase(Case):
    """A `Case` whose base is a layer's answer."""

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        batch, middle, d_in, d_out, _ = self.shape
        generator = torch.Generator().manual_seed(self.seed + 1000)

        def normal(*sizes: int) -> Tensor:
            return torch.randn(sizes, generator=generator, dtype=torch.float64).to(self.dtype)

        own = {
            "weight": normal(d_out, d_in) / d_in**0.5,
            "weight1": normal(d_out, d_in) / d_in**0.5,
            "bias": normal(d_out),
            "choice": torch.rand(batch, *middle, generator=generator) < 0.5,
        }
        return {**Case(self.shape, self.dtype, self.seed).tensors, **own}

    @property
    def layer(self) -> Tensor:
        """What the layer alone answers, in float64."""
        return self.wide("x") @ self.wide("weight").t() + self.wide("bias")

    def rank_gated(self) -> tuple[list[str], Tensor]:
        names = ["x", "weight", "bias", "lora_a", "lora_b", "indices", "scale"]
        given = [self.wide(name) for name in ("x", "lora_a", "lora_b", "indices", "scale")]
        return names, gated_lora_reference(self.layer, *given)

    def token_gated(self, threshold: float) -> Tensor:
        if not self.tensors["x"].numel():
            return self.layer
        given = [self.wide(name) for name in ("x", "lora_a", "lora_b")]
        limit = torch.tensor(threshold, dtype=torch.float64)
        return token_gated_lora_reference(self.layer, *given, limit, self.wide("scale"))

    def routed(self) -> Tensor:
        if not self.tensors["x"].numel():
            return self.layer
        given = [self.wide(name) for name in ("x", "weight", "weight1", "bias")]
        return routed_linear_reference(*given, self.tensors["choice"])

    def threshold(self) -> float:
        update = self.wide("scale") * (self.wide("x") @ self.wide("lora_a").t() @ self.wide("lora_b").t())
        ratios = (update.norm(dim=-1) / self.layer.norm(dim=-1)).flatten().sort().values
        if len(ratios) < 2:
            return 0.0
        middle = len(ratios) // 2
        return float(ratios[middle - 1 : middle + 1].mean())
