"""Which token comes next: the likeliest, or one drawn from the distribution that temperature, top-k and top-p leave."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...config import is_number
from ...errors import InputError


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        temperature: 0 takes the likeliest token; above, logits are divided by it and tokens are drawn.
        top_k: draw among the k likeliest only; top_p: among the likeliest that together have this probability.
        seed: of the draws; None takes torch's own random state.

    Raises:
        InputError: a number out of range, or one that greedy choice would ignore.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        whole = isinstance(self.top_k, int) and not isinstance(self.top_k, bool) and self.top_k > 0
        if not is_number(self.temperature) or self.temperature < 0:
            raise _out_of_range("temperature", self.temperature, "0 or more; 0 takes the likeliest token")
        if self.top_k is not None and not whole:
            raise _out_of_range("top_k", self.top_k, "a positive integer, or None for all tokens")
        if self.top_p is not None and (not is_number(self.top_p, above=0) or self.top_p > 1):
            raise _out_of_range("top_p", self.top_p, "a probability in (0, 1], or None for all tokens")
        if self.temperature == 0 and (self.top_k is not None or self.top_p is not None or self.seed is not None):
            raise InputError(
                "top_k, top_p and seed say how tokens are drawn, and at temperature 0 none is.",
                given=f"temperature=0, top_k={self.top_k}, top_p={self.top_p}, seed={self.seed}",
                expected="a temperature above 0, or none of them",
                remedy="pass temperature=1.0",
            )

    def generator(self) -> torch.Generator | None:
        """The source of the draws of one generation."""
        return None if self.seed is None else torch.Generator().manual_seed(self.seed)


def choose(logits: Tensor, sampling: Sampling, generator: torch.Generator | None) -> Tensor:
    """The next token of each row: (B, V) → (B,) int64."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    kept = restricted(logits.double() / sampling.temperature, sampling.top_k, sampling.top_p)
    return torch.multinomial(kept.softmax(-1), 1, generator=generator).squeeze(-1)


def restricted(logits: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """Logits with -inf at tokens that are not drawn; of equal logits the earlier token counts as larger."""
    values, order = logits.sort(dim=-1, descending=True, stable=True)
    gone = torch.zeros_like(values, dtype=torch.bool)
    if top_k is not None:
        gone[..., top_k:] = True
    if top_p is not None:
        # k first, then p of what k leaves; a token stays while those before it have less than p.
        chances = values.masked_fill(gone, -torch.inf).softmax(-1)
        gone |= chances.cumsum(-1) - chances >= top_p
    return logits.masked_fill(torch.zeros_like(gone).scatter(-1, order, gone), -torch.inf)


def _out_of_range(name: str, value: object, expected: str) -> InputError:
    return InputError(f"{name} is out of range.", given=f"{name}={value!r}", expected=expected)
