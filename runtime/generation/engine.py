"""What generation asks of an engine: a prefill and a decode that answer with logits and a cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from .cache import Cache


@dataclass(frozen=True)
class DecoderFacts:
    """What is known of a decoder beside its graphs.

    Attributes:
        vocabulary: V; positions: how many there are, None where nothing limits them.
        stop: tokens after which a sequence is over; pad: what fills the rows of sequences that are.
        start: of an encoder-decoder, the tokens that its answers start with; else none. The prompt is its source, and
            answers have positions of their own.
        chooses: method that decides by the whole prompt → the budget at which it keeps everything.
        static: whether every cache has a fixed size.
        streams: of these methods, those that can also decide by the parts of a prompt so far.
    """

    vocabulary: int
    positions: int | None
    stop: tuple[int, ...]
    pad: int
    start: tuple[int, ...] = ()
    chooses: Mapping[str, float] = field(default_factory=dict)
    static: bool = False
    streams: tuple[str, ...] = ()


class Engine(Protocol):
    """A decoder that runs. Every call answers the logits of each row's last real token, (B, V), and the cache then."""

    @property
    def facts(self) -> DecoderFacts:
        """What limits it."""

    @property
    def name(self) -> str:
        """Which model it is, for messages and to know its caches again."""

    def resolved(self, budget: object) -> object:
        """The budget of a call in the method's unit; None is the one in force.

        Raises:
            BudgetError: one that the model does not have.
        """

    def prefill(self, ids: Tensor, mask: Tensor, budget: object) -> tuple[Tensor, Cache]:
        """Read whole prompts: ids, mask (B, T) int64. An encoder-decoder reads what its answers start with, too."""

    def decode(self, ids: Tensor, mask: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        """Read further tokens behind a cache: ids, mask (B, T) int64, T is 1 as a rule.

        Raises:
            InputError: a cache of fixed size without room for T tokens, or whose rows were overwritten.
        """

    def read_part(
        self, ids: Tensor, mask: Tensor, budget: object, cache: Cache | None, end: Tensor
    ) -> tuple[Tensor, Cache]:
        """Read a part of a prompt, where methods that `facts.streams` names decide by what they saw so far.

        Args:
            ids, mask: (B, T) int64; cache: of the parts before; end: (B,) int64, where each prompt's last token is.

        Raises:
            GatefxError: the decoder has no such form; says why.
        """

    def check_static(self) -> None:
        """Said before a prompt is read, whose cache shall be `fixed`.

        Raises:
            InputError: the decoder has no form with a cache of fixed size.
        """

    def fixed(self, cache: Cache, room: int) -> Cache:
        """A prompt's cache in buffers that have `room` more rows, which further tokens are written to.

        Raises:
            InputError: as `check_static`.
        """


def places_after(last: tuple[int, ...], mask: Tensor) -> Tensor:
    """Positions of tokens behind the position `last` of each row, -1 where there is none: mask (B, T) → (B, T)."""
    before = mask.new_tensor(last).unsqueeze(1)
    return (before + mask.cumsum(-1)).clamp_min(0)


def last_places(positions: Tensor) -> tuple[int, ...]:
    """Each row's position of its last real token so far: padding stands at a neighbour's."""
    return tuple(int(place) for place in positions.amax(-1))


def last_tokens(logits: Tensor, mask: Tensor) -> Tensor:
    """The logits of each row's last real token: (B, T, V), mask (B, T) → (B, V)."""
    if logits.shape[1] == 1:
        return logits[:, 0]
    place = (mask * mask.cumsum(-1)).argmax(-1)
    return logits[torch.arange(len(place)), place]
