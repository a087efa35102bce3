"""Prompts read in parts: the first by the prefill, every other behind the cache of those before it.

    ids, mask (B, T), padded anywhere  →  real tokens in front  →  (B, n), (B, n), …     memory of n tokens, not of T

The answer is that of the prompt read at once, where nothing chooses by the whole prompt.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ...errors import InputError
from .cache import Cache
from .engine import Engine
from .prompts import Prompt


def read_chunks(
    engine: Engine, prompt: Prompt, budget: object, cache: Cache | None, size: int, room: int | None = None
) -> tuple[Tensor, Cache]:
    """The logits of each row's last real token, (B, V), and the cache.

    Args:
        cache: what stands in front of the prompt; size: n, tokens a call; room: rows behind the prompt in a cache of
            fixed size, None where it grows.

    Raises:
        InputError: n is no positive number, or a gate chooses by the whole prompt at this budget.
    """
    _check(engine, budget, size)
    ids, mask = packed(prompt.ids, prompt.mask)
    logits: Tensor | None = None
    for begin in range(0, prompt.longest, size):
        part, real = ids[:, begin : begin + size], mask[:, begin : begin + size]
        if cache is None:
            fresh, cache = engine.prefill(part, real, budget)
            cache = cache if room is None else engine.fixed(cache, prompt.longest - part.shape[1] + room)
        else:
            fresh, cache = engine.decode(part, real, cache)
        # A row whose prompt ended in an earlier part keeps the logits of that.
        logits = fresh if logits is None else torch.where(real.any(-1, keepdim=True), fresh, logits)
    if logits is None or cache is None:
        raise InputError("A prompt is empty.", given="no real token", expected="one token or more a row")
    return logits, cache


def packed(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (B, T) with their real tokens in front, in order."""
    order = mask.argsort(dim=-1, descending=True, stable=True)
    return ids.gather(-1, order), mask.gather(-1, order)


def _check(engine: Engine, budget: object, size: object) -> None:
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise InputError("chunk counts tokens.", given=repr(size), expected="a positive integer, or None")
    budgets = budget if isinstance(budget, Mapping) else dict.fromkeys(engine.facts.chooses, budget)
    choosing = [name for name, full in engine.facts.chooses.items() if budgets.get(name) != full]
    if choosing or engine.facts.start:
        raise InputError(
            "This prompt cannot be read in parts: all of it is needed to decide.",
            given=f"{choosing[0]} at budget {budgets.get(choosing[0])}" if choosing else "an encoder-decoder's source",
            expected="a decoder whose gates decide token by token, or keep everything",
            remedy="leave chunk out, or pass budget='100%'",
        )
