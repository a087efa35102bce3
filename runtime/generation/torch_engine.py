"""A decoder's two graphs in torch, as an engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..cache_names import CROSS_MASK, LOGITS, PROMPT_END, is_present, is_states, mask_name, past_of, positions_name
from .cache import Cache, key_names
from .engine import DecoderFacts, last_places, last_tokens, places_after
from .static_rows import StaticRows, kept_rows, with_room


@dataclass(frozen=True)
class Program:
    """A torch module that takes tensors by position and answers by name.

    Attributes:
        names: of its inputs, in order; blank: the cache of so many sequences before their first token.
    """

    module: nn.Module
    names: Sequence[str]
    blank: Callable[[int], Mapping[str, Tensor]]


class TorchEngine:
    """Prefill and decode in torch.

    Args:
        static: makes the decode that writes into the buffers of a cache of fixed size.
        part: makes the prefill that reads a prompt in parts.
        facts: what limits the decoder; name: which model it is.
        resolved: a call's budget in the method's unit; at: a context in which such a budget is in force.
    """

    def __init__(
        self,
        prefill: Program,
        decode: Program,
        static: Callable[[], Program],
        part: Callable[[], Program],
        *,
        facts: DecoderFacts,
        name: str,
        resolved: Callable[[object], object],
        at: Callable[[object], Any],
    ) -> None:
        self._prefill, self._decode, self._static, self._part = prefill, decode, static, part
        self._facts, self._name, self._resolved, self._at = facts, name, resolved, at
        self._device = next(decode.module.parameters()).device

    @property
    def facts(self) -> DecoderFacts:
        """What limits it."""
        return self._facts

    @property
    def name(self) -> str:
        """Which model it is."""
        return self._name

    def resolved(self, budget: object) -> object:
        """As `Engine.resolved`."""
        return self._resolved(budget)

    @torch.no_grad()
    def prefill(self, ids: Tensor, mask: Tensor, budget: object) -> tuple[Tensor, Cache]:
        """As `Engine.prefill`."""
        positions = places_after((-1,) * len(ids), mask)
        with self._at(budget):
            answers = self._run(self._prefill, ids, mask, positions, {})
        if self._facts.start:
            return self._begin({CROSS_MASK: mask.to(self._device), **answers}, len(ids), budget)
        given = {positions_name(0): positions.to(self._device), mask_name(0): mask.to(self._device)}
        return self._answer(answers, mask, last_places(positions), budget, given)

    @torch.no_grad()
    def decode(self, ids: Tensor, mask: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        """As `Engine.decode`."""
        if self._facts.start:
            cache.check_in_line(mask)
        positions = places_after(cache.last, mask)
        static, program, held = cache.static, self._decode, dict(cache.entries)
        if static is not None:
            program = self._static()
            held |= {name: place.to(self._device) for name, place in static.places(ids.shape[1]).items()}
        with self._at(cache.budget):
            answers = self._run(program, ids, mask, positions, held)
        static = None if static is None else static.after(ids.shape[1])
        return self._answer(answers, mask, last_places(positions), cache.budget, cache.entries, static)

    @torch.no_grad()
    def read_part(
        self, ids: Tensor, mask: Tensor, budget: object, cache: Cache | None, end: Tensor
    ) -> tuple[Tensor, Cache]:
        """As `Engine.read_part`."""
        program = self._part()
        positions = places_after((-1,) * len(ids) if cache is None else cache.last, mask)
        held = program.blank(len(ids)) if cache is None else cache.entries
        with self._at(budget):
            answers = self._run(program, ids, mask, positions, {**held, PROMPT_END: end.to(self._device)})
        return self._answer(answers, mask, last_places(positions), budget, held)

    def check_static(self) -> None:
        """As `Engine.check_static`."""
        self._static()

    @torch.no_grad()
    def fixed(self, cache: Cache, room: int) -> Cache:
        """As `Engine.fixed`."""
        self._static()
        kept = kept_rows({name: value.shape for name, value in cache.entries.items()})
        entries = {name: with_room(value, name, room) for name, value in cache.entries.items()}
        return sized(replace(cache, entries=entries, static=StaticRows(kept, room)))

    def _begin(self, encoded: Mapping[str, Tensor], rows: int, budget: object) -> tuple[Tensor, Cache]:
        """Read the tokens that answers start with, behind an encoder."""
        known = {past_of(name) if is_present(name) else name: value for name, value in encoded.items()}
        entries = {**known, **self._decode.blank(rows)}
        start = torch.tensor([self._facts.start] * rows)
        return self.decode(start, torch.ones_like(start), Cache(entries, self._name, budget, (-1,) * rows, (), 0))

    def _run(
        self,
        program: Program,
        ids: Tensor,
        mask: Tensor,
        positions: Tensor,
        cache: Mapping[str, Tensor],
    ) -> Mapping[str, Tensor]:
        new = {"input_ids": ids, "decoder_input_ids": ids, "attention_mask": mask, "position_ids": positions}
        given = {**{name: tensor.to(self._device) for name, tensor in new.items()}, **cache}
        answers: Mapping[str, Tensor] = program.module(*(given[name] for name in program.names))
        return answers

    def _answer(
        self,
        answers: Mapping[str, Tensor],
        mask: Tensor,
        last: tuple[int, ...],
        budget: object,
        held: Mapping[str, Tensor],
        static: StaticRows | None = None,
    ) -> tuple[Tensor, Cache]:
        entries = {past_of(name) if is_present(name) else name: v for name, v in answers.items() if name != LOGITS}
        cache = sized(Cache({**held, **entries}, self._name, budget, last, (), 0, static))
        return last_tokens(answers[LOGITS].cpu().float(), mask), cache


def sized(cache: Cache) -> Cache:
    """The cache of tensors with its rows and its bytes counted."""
    entries: Mapping[str, Tensor] = cache.entries
    rows = tuple(entries[name].shape[2] for name in key_names(entries))
    size = sum(value.numel() * value.element_size() for name, value in entries.items() if is_states(name))
    return replace(cache, rows=rows, bytes=size)
