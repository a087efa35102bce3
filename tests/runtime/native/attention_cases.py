"""Random calls of the native attention, and what they mean in float64."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

#: Largest share of max|reference| that an answer may be off. Rounding of a score is a relative error of its weight, so
#: float32 has more of it here than in a sum of products; the standard operator has as much.
BOUNDS = {torch.float32: 2e-6, torch.float64: 1e-14, torch.float16: 2e-3}

#: (B, T, S, heads of keys, queries' heads for each, features of a key, features of a value)
SHAPES = (
    (1, 1, 1, 1, 1, 1, 1),
    (2, 0, 5, 1, 1, 4, 4),
    (2, 1, 300, 1, 3, 5, 9),
    (3, 7, 7, 2, 1, 16, 16),
    (2, 49, 129, 1, 2, 32, 33),
    (1, 97, 128, 3, 1, 64, 17),
    (2, 13, 270, 1, 2, 80, 31),
    (1, 3, 5, 1, 1, 256, 256),
)


@dataclass(frozen=True)
class AttentionCase:
    """Tensors of one call. `sees` names the mask: all, none, causal, random, padded (its last example: none)."""

    shape: tuple[int, int, int, int, int, int, int]
    dtype: torch.dtype
    sees: str = "padded"
    seed: int = 0

    @property
    def heads(self) -> dict[str, int]:
        groups, sharing = self.shape[3:5]
        return {"q_num_heads": groups * sharing, "kv_num_heads": groups}

    @property
    def scale(self) -> float:
        """As the node's attribute has it."""
        return float(np.float32(self.shape[5] ** -0.5))

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        batch, queries, keys, groups, sharing, head, value_head = self.shape
        generator = torch.Generator().manual_seed(self.seed)

        def normal(*sizes: int) -> Tensor:
            return torch.randn(sizes, generator=generator, dtype=torch.float64).to(self.dtype)

        return {
            "q": normal(batch, queries, groups * sharing * head),
            "k": normal(batch, keys, groups * head),
            "v": normal(batch, keys, groups * value_head),
            "visible": self._visible(generator),
        }

    def _visible(self, generator: torch.Generator) -> Tensor:
        """(B, 1, T, S), or more of it than that where a head has its own."""
        batch, queries, keys = self.shape[:3]
        if self.sees == "causal":
            return torch.ones(1, 1, queries, keys, dtype=torch.bool).tril(keys - queries)
        if self.sees == "random":
            return torch.rand(batch, self.heads["q_num_heads"], queries, keys, generator=generator) < 0.5
        lengths = {"all": [keys] * batch, "none": [0] * batch, "padded": [keys, *([keys // 2] * batch)][:batch]}[
            self.sees
        ]
        if self.sees == "padded" and batch > 1:
            lengths[-1] = 0
        seen = torch.arange(keys) < torch.tensor(lengths)[:, None]
        return seen[:, None, None, :].expand(batch, 1, queries, keys).contiguous()

    def arrays(self) -> dict[str, np.ndarray]:
        return {name: tensor.numpy() for name, tensor in self.tensors.items()}

    def off(self, answer: Tensor) -> float:
        """Largest error as a share of max|reference|; of 1 where the reference is zeros."""
        reference = self.reference()
        if not reference.numel():
            return 0.0
        return float((answer.double() - reference).abs().max() / (reference.abs().max() or 1.0))

    def reference(self) -> Tensor:
        """Softmax over what is seen, each head by itself, in float64; zeros where nothing is."""
        batch, queries, keys, groups, sharing, head, value_head = self.shape
        q = self.tensors["q"].double().view(batch, queries, groups * sharing, head).transpose(1, 2)
        k = self.tensors["k"].double().view(batch, keys, groups, head).transpose(1, 2).repeat_interleave(sharing, 1)
        v = (
            self.tensors["v"]
            .double()
            .view(batch, keys, groups, value_head)
            .transpose(1, 2)
            .repeat_interleave(sharing, 1)
        )
        scores = (q @ k.transpose(2, 3) * self.scale).masked_fill(~self.tensors["visible"], -torch.inf)
        mixed = scores.softmax(-1).nan_to_num(0.0) @ v
        return mixed.transpose(1, 2).reshape(batch, queries, groups * sharing * value_head)
