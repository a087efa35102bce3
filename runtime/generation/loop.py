"""The loop: prefill once, then one token a step for every row that has not stopped."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import InputError
from .cache import Cache
from .chunks import chooses_in_parts, read_chunks
from .engine import Engine
from .eviction import Eviction, check_interval
from .prompts import Prompt, Rows, check_length, read_prompt
from .sampling import Sampling, choose
from .static_rows import check_cache_length


@dataclass(frozen=True)
class PhaseRecord:
    """What one phase of a generation did.

    Attributes:
        tokens: real tokens that were read, of all rows; calls: of the engine; seconds: in the engine.
        rows, bytes: S of every layer of the cache, and its size, after the phase.
    """

    tokens: int
    calls: int
    seconds: float
    rows: tuple[int, ...]
    bytes: int


class Generation(Iterator[Tensor]):
    """A generation that is under way: iterate for the tokens of each step, (B,), or ask for all of them.

    A row that stopped goes on with the padding token; the iteration ends when every row stopped, or at the limit.

    Attributes:
        prefill, decode: what each phase did so far.
    """

    def __init__(
        self,
        engine: Engine,
        start: tuple[Tensor, Cache],
        limit: int,
        stop: Tensor,
        sampling: Sampling,
        eviction: Eviction | None = None,
    ) -> None:
        self._engine, self._eviction = engine, eviction
        self._logits, self._cache = start
        self._limit, self._stop, self._sampling = limit, stop, sampling
        self._generator = sampling.generator()
        self._steps: list[Tensor] = []
        self._stopped = torch.zeros(self._logits.shape[0], dtype=torch.bool)
        self._pending: tuple[Tensor, Tensor] | None = None  # tokens that were not read yet, and which of them are real
        self.prefill = PhaseRecord(0, 0, 0.0, (), 0)
        self.decode = PhaseRecord(0, 0, 0.0, self._cache.rows, self._cache.bytes)

    def __iter__(self) -> Generation:
        return self

    def __next__(self) -> Tensor:
        if len(self._steps) == self._limit or bool(self._stopped.all()):
            raise StopIteration
        self._read_pending()
        chosen = choose(self._logits, self._sampling, self._generator)
        chosen = chosen.masked_fill(self._stopped, self._engine.facts.pad)
        self._pending = (chosen.unsqueeze(1), (~self._stopped).long().unsqueeze(1))
        self._stopped = self._stopped | torch.isin(chosen, self._stop)
        self._steps.append(chosen)
        return chosen

    @property
    def tokens(self) -> Tensor:
        """Every generated token, (B, N), after running to the end; padding behind a stop token."""
        for _ in self:
            pass
        return torch.stack(self._steps, 1)

    @property
    def lengths(self) -> Tensor:
        """How many tokens each row generated, its stop token included, (B,)."""
        tokens = self.tokens
        stops = torch.isin(tokens, self._stop)
        first = torch.where(stops.any(-1), stops.int().argmax(-1) + 1, tokens.shape[1])
        return first.long()

    @property
    def logits(self) -> Tensor:
        """The logits (B, V) that the last token was chosen by."""
        return self._logits

    @property
    def cache(self) -> Cache:
        """The cache with every token so far, to go on from: `gatefx.generate(model, ids, cache=generation.cache)`."""
        self._read_pending()
        return self._cache

    def _read_pending(self) -> None:
        """Let the engine read the last step's tokens."""
        if self._pending is None:
            return
        ids, mask = self._pending
        started = time.perf_counter()
        state = self._engine.decode(ids, mask, self._cache)
        if self._eviction is not None:
            state = self._eviction.after(self._engine, ids, mask, state)
        self._logits, self._cache = state
        self._pending = None  # only now: what was refused is still to be read
        seconds = self.decode.seconds + time.perf_counter() - started
        tokens, calls = self.decode.tokens + int(mask.sum()), self.decode.calls + 1
        self.decode = PhaseRecord(tokens, calls, seconds, self._cache.rows, self._cache.bytes)


def start_generation(  # noqa: PLR0913  # keyword-only: the options of `gatefx.generate`
    engine: Engine,
    input_ids: Rows,
    attention_mask: Rows | None,
    *,
    max_new_tokens: int,
    sampling: Sampling,
    stop: Sequence[int] | int | None,
    budget: object,
    cache: Cache | None,
    chunk: int | None = None,
    max_cache_len: int | None = None,
    evict_every: int | None = None,
) -> Generation:
    """Check the prompt, read it, and stand ready for the first token.

    Raises:
        InputError: as `read_prompt`, `check_length`, `Cache.check`, `_room`, `check_interval` and `read_chunks` say; no
            positive number of tokens to generate.
    """
    if not isinstance(max_new_tokens, int) or isinstance(max_new_tokens, bool) or max_new_tokens < 1:
        raise InputError("max_new_tokens counts tokens.", given=repr(max_new_tokens), expected="a positive integer")
    prompt = read_prompt(input_ids, attention_mask, engine.facts)
    wanted = engine.resolved(budget)
    if cache is not None:
        cache.check(engine.name, wanted, len(prompt.ids))
    check_length(prompt, None if cache is None else cache.last, max_new_tokens, engine.facts)
    width = prompt.ids.shape[1] if chunk is None else prompt.longest
    room = _room(engine, width, max_new_tokens, cache, max_cache_len)
    if evict_every is not None:
        chunk = prompt.longest if chunk is None else chunk
        chooses = chooses_in_parts(engine, wanted, chunk)
        check_interval(evict_every, chooses=chooses, cache=cache, length=max_cache_len)
    stops = engine.facts.stop if stop is None else (stop,) if isinstance(stop, int) else tuple(stop)
    started = time.perf_counter()
    if chunk is None:
        start = _read(engine, prompt, wanted, cache, room)
    else:
        start = read_chunks(engine, prompt, wanted, cache, chunk, room=room, remember=evict_every is not None)
    seconds = time.perf_counter() - started
    eviction = None if evict_every is None else Eviction(evict_every, start[1])
    generation = Generation(engine, start, max_new_tokens, torch.tensor(stops, dtype=torch.int64), sampling, eviction)
    generation.prefill = PhaseRecord(int(prompt.mask.sum()), 1, seconds, start[1].rows, start[1].bytes)
    return generation


def _read(
    engine: Engine, prompt: Prompt, budget: object, cache: Cache | None, room: int | None
) -> tuple[Tensor, Cache]:
    if cache is not None:
        return engine.decode(prompt.ids, prompt.mask, cache)
    logits, read = engine.prefill(prompt.ids, prompt.mask, budget)
    return logits, read if room is None else engine.fixed(read, room)


def _room(engine: Engine, width: int, new: int, cache: Cache | None, length: int | None) -> int | None:
    """How many rows to keep behind a prompt of `width` tokens; None where the cache grows, or is there already.

    Raises:
        InputError: a generation that would go past a static cache, a length for a cache that has one, or where the
            engine has none of fixed size.
    """
    if cache is not None:
        if length is not None:
            raise InputError(
                "A cache that is gone on from has its size already.",
                given=f"max_cache_len={length} with cache=",
                expected="max_cache_len where the prompt is read",
            )
        if cache.static is not None:
            cache.static.check(width + new - 1)  # the last token is never read
        return None
    if length is None:
        return new if engine.facts.static else None
    room = check_cache_length(length, width, new)
    engine.check_static()
    return room
