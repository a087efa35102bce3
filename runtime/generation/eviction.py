"""Generated tokens that gates on tokens drop again: every n of them are read once more, as a part of the prompt.

    prompt ─▶ read_part ─▶ C₀ ─▶ decode n tokens, all of them seen ─▶ read_part of these n behind C₀ ─▶ C₁ ─▶ decode …

So at every n-th token the generation stands where it would if prompt and answer so far had been read in parts
(`chunks.py`), the answer's of n tokens: layers after a cut keep what their gates choose, by the scores of all tokens so
far, and the next token is chosen by that. The last token of a part stays, and the last `recent` ones.

C₀ is kept while its n tokens are decoded, beside the cache that grows.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...errors import InputError
from .cache import Cache
from .engine import Engine


@dataclass
class Eviction:
    """The tokens that were generated since the cache was cut back.

    Args:
        interval: n; anchor: the cache then, with the scores that gates saw.
    """

    interval: int
    anchor: Cache
    _ids: list[Tensor] = field(default_factory=list)
    _masks: list[Tensor] = field(default_factory=list)

    def after(self, engine: Engine, ids: Tensor, mask: Tensor, state: tuple[Tensor, Cache]) -> tuple[Tensor, Cache]:
        """The logits and the cache to go on with, once tokens (B, 1) were decoded to `state`."""
        self._ids.append(ids)
        self._masks.append(mask)
        if len(self._ids) < self.interval:
            return state
        part, real = torch.cat(self._ids, 1), torch.cat(self._masks, 1)
        end = real.new_tensor(state[1].last)
        fresh, self.anchor = engine.read_part(part, real, self.anchor.budget, self.anchor, end)
        self._ids, self._masks = [], []
        # Rows that stopped before have nothing to choose.
        return torch.where(real.any(-1, keepdim=True), fresh, state[0]), self.anchor


def check_interval(interval: object, *, chooses: bool, cache: Cache | None, length: int | None) -> None:
    """Refuse an interval that means nothing.

    Args:
        chooses: whether gates choose among the tokens of a part; cache, length: options of the same generation.

    Raises:
        InputError: as said.
    """
    if not isinstance(interval, int) or isinstance(interval, bool) or interval < 1:
        raise InputError("evict_every counts tokens.", given=repr(interval), expected="a positive integer, or None")
    if not chooses:
        raise InputError(
            "Nothing would be dropped of the generated tokens.",
            given=f"evict_every={interval} with a model or a budget that keeps every token",
            expected="a model of masklora below 100%",
            remedy="leave evict_every out",
        )
    if cache is not None or length is not None:
        raise InputError(
            "Generated tokens are dropped from caches that grow, whose prompt was read in the same call.",
            given=f"evict_every={interval} with {'cache' if cache is not None else 'max_cache_len'}=",
            expected="one of both",
        )
