"""Prompts read in parts: the first by the prefill, every other behind the cache of those before it.

    ids, mask (B, T), padded anywhere  →  real tokens in front  →  (B, n), (B, n), …     memory of n tokens, not of T

The answer is that of the prompt read at once, where nothing chooses by the whole prompt. Gates on tokens choose within
each part, by the scores of all parts so far (`models/streamed_token_gate.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ...errors import InputError
from ..cache_names import is_seen
from .cache import Cache
from .engine import Engine
from .prompts import Prompt


def read_chunks(
    engine: Engine,
    prompt: Prompt,
    budget: object,
    cache: Cache | None,
    size: int,
    *,
    room: int | None = None,
    remember: bool = False,
) -> tuple[Tensor, Cache]:
    """The logits of each row's last real token, (B, V), and the cache.

    Args:
        cache: what stands in front of the prompt; size: n, tokens a call; room: rows behind the prompt in a cache of
            fixed size, None where it grows; remember: leave the scores that gates saw in the cache, for further parts.

    Raises:
        InputError: n is no positive number, or a gate chooses by the whole prompt at this budget.
    """
    chooses = chooses_in_parts(engine, budget, size) and cache is None  # behind a cache every token stays
    ids, mask = packed(prompt.ids, prompt.mask)
    end = mask.sum(-1) - 1
    logits: Tensor | None = None
    for begin in range(0, prompt.longest, size):
        part, real = ids[:, begin : begin + size], mask[:, begin : begin + size]
        if chooses:
            fresh, cache = engine.read_part(part, real, budget, cache, end)
        elif cache is None:
            fresh, cache = engine.prefill(part, real, budget)
            cache = cache if room is None else engine.fixed(cache, prompt.longest - part.shape[1] + room)
        else:
            fresh, cache = engine.decode(part, real, cache)
        # A row whose prompt ended in an earlier part keeps the logits of that.
        logits = fresh if logits is None else torch.where(real.any(-1, keepdim=True), fresh, logits)
    if logits is None or cache is None:
        raise InputError("A prompt is empty.", given="no real token", expected="one token or more a row")
    if chooses and not remember:
        cache = replace(cache, entries={name: v for name, v in cache.entries.items() if not is_seen(name)})
        cache = cache if room is None else engine.fixed(cache, room)
    return logits, cache


def packed(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (B, T) with their real tokens in front, in order."""
    order = mask.argsort(dim=-1, descending=True, stable=True)
    return ids.gather(-1, order), mask.gather(-1, order)


def chooses_in_parts(engine: Engine, budget: object, size: object) -> bool:
    """Whether a method is to choose part by part, of `size` tokens. Errors as `read_chunks`."""
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise InputError("chunk counts tokens.", given=repr(size), expected="a positive integer, or None")
    budgets = budget if isinstance(budget, Mapping) else dict.fromkeys(engine.facts.chooses, budget)
    choosing = [name for name, full in engine.facts.chooses.items() if budgets.get(name) != full]
    whole = [name for name in choosing if name not in engine.facts.streams]
    if whole or engine.facts.start:
        raise InputError(
            "This prompt cannot be read in parts: all of it is needed to decide.",
            given=f"{whole[0]} at budget {budgets.get(whole[0])}" if whole else "an encoder-decoder's source",
            expected="a decoder whose gates decide token by token or part by part, or keep everything",
            remedy="leave chunk out, or pass budget='100%'; masklora is exported for parts with generate='parts'",
        )
    return bool(choosing)
