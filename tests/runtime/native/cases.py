"""Random calls of the native operators, and what they mean in float64."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from gatefx.runtime.ops.reference import gated_lora_reference
from gatefx.runtime.ops.reference_updates import token_gated_lora_reference

#: Largest share of max|reference| that an answer may be off.
BOUNDS = {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 1e-2, torch.float16: 1e-3}

#: (B, middle axes, d_in, d_out, r): no token, one token, odd sizes, remainders of every register tile, k = r = 64,
#: sums of many products.
SHAPES = (
    (1, (1,), 1, 1, 1),
    (2, (), 5, 7, 3),
    (3, (0,), 8, 8, 2),
    (2, (1,), 33, 31, 5),
    (3, (7,), 17, 24, 6),
    (2, (3, 5), 64, 48, 16),
    (1, (53,), 130, 97, 7),
    (2, (50,), 96, 200, 64),
    (5, (2,), 40, 40, 100),
    (2, (3,), 14337, 9, 3),
)


@dataclass(frozen=True)
class Case:
    """Tensors of one call. Ranks active: none for example 0, all for the last one, some for the others."""

    shape: tuple[int, tuple[int, ...], int, int, int]
    dtype: torch.dtype
    seed: int = 0

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        batch, middle, d_in, d_out, rank = self.shape
        generator = torch.Generator().manual_seed(self.seed)

        def normal(*sizes: int) -> Tensor:
            return torch.randn(sizes, generator=generator, dtype=torch.float64).to(self.dtype)

        indices = torch.full((batch, rank), -1)
        for example in range(batch):
            count = (0, rank)[example == batch - 1] if example in (0, batch - 1) else (rank + 1) // 2
            indices[example, :count] = torch.randperm(rank, generator=generator)[:count]
        lora_b = normal(d_out, rank)
        return {
            "base": normal(batch, *middle, d_out),
            "x": normal(batch, *middle, d_in),
            "lora_a": normal(rank, d_in) / d_in**0.5,
            "lora_b": lora_b,
            "indices": indices,
            "gram": (lora_b.double().t() @ lora_b.double()).to(self.dtype),
            "scale": torch.tensor(1.5, dtype=self.dtype),
        }

    def wide(self, name: str) -> Tensor:
        tensor = self.tensors[name]
        return tensor.double() if tensor.is_floating_point() else tensor

    def rank_gated(self) -> tuple[list[str], Tensor]:
        """The operator's inputs in order, and its answer in float64."""
        names = ["base", "x", "lora_a", "lora_b", "indices", "scale"]
        return names, gated_lora_reference(*(self.wide(name) for name in names))

    def token_gated(self, threshold: float) -> Tensor:
        """Its answer in float64."""
        if not self.tensors["x"].numel():
            return self.wide("base")
        names = ["base", "x", "lora_a", "lora_b"]
        limit = torch.tensor(threshold, dtype=torch.float64)
        return token_gated_lora_reference(*(self.wide(name) for name in names), limit, self.wide("scale"))

    def threshold(self) -> float:
        """One that half of the tokens pass, and none passes or misses narrowly."""
        update = self.wide("scale") * (self.wide("x") @ self.wide("lora_a").t() @ self.wide("lora_b").t())
        ratios = (update.norm(dim=-1) / self.wide("base").norm(dim=-1)).flatten().sort().values
        if len(ratios) < 2:
            return 0.0
        middle = len(ratios) // 2
        return float(ratios[middle - 1 : middle + 1].mean())

    def arrays(self, names: list[str]) -> dict[str, np.ndarray]:
        return {name: self.tensors[name].numpy() for name in names}


def error(answer: Tensor, reference: Tensor) -> float:
    """Largest difference, as a share of the largest number of the reference."""
    if not reference.numel():
        return 0.0
    return float((answer.double() - reference).abs().max() / reference.abs().max())
