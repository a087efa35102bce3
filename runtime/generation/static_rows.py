"""A cache of fixed size: which of its rows are written, and where the next ones go.

    group g after a prompt    ├─ kept rows K_g ─┼─────────── room ───────────┤    N_g = K_g + room rows, for good
    after n more tokens       ├─ K_g + n ───────────┼────────────────────────┤

Every group has room for as many tokens; what a cut dropped of the prompt needs no rows. Keys and values are written in
place, so buffers belong to the last step that wrote them: earlier caches of theirs are stale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ...errors import InputError
from ..cache_names import MASKS, cache_position_name, is_past, is_states, mask_name


@dataclass
class _Ledger:
    """What the buffers hold now, whichever cache looks at them."""

    written: int = 0


@dataclass(frozen=True)
class StaticRows:
    """The rows of one cache of fixed size.

    Attributes:
        kept: rows of the prompt, by group; room: for how many tokens behind it; written: of these, so far.
    """

    kept: tuple[int, ...]
    room: int
    written: int = 0
    _ledger: _Ledger = field(default_factory=_Ledger, repr=False, compare=False)

    @property
    def left(self) -> int:
        """How many more tokens fit."""
        return self.room - self.written

    def places(self, tokens: int) -> Mapping[str, Tensor]:
        """The decode's inputs that say where its new rows go, (T,) each.

        Raises:
            InputError: more tokens than fit, or buffers that a later step wrote to.
        """
        self.check(tokens)
        new = torch.arange(self.written, self.written + tokens)
        return {cache_position_name(group): rows + new for group, rows in enumerate(self.kept)}

    def check(self, tokens: int) -> None:
        """Refuse tokens that cannot be written. Errors as `places`."""
        if self._ledger.written != self.written:
            raise InputError(
                "The rows of this static cache were overwritten since.",
                given=f"a cache of {self.written} tokens behind the prompt, whose buffers hold {self._ledger.written}",
                expected="the cache of the last generation that went on in these buffers",
                remedy="go on from that one, or generate without max_cache_len, whose caches stay as they are",
            )
        if tokens > self.left:
            raise InputError(
                "The generation would go past its static cache.",
                given=f"{tokens} tokens more, where {self.left} of {self.room} rows behind the prompt are left",
                expected=f"at most {self.left} tokens",
                remedy="make the cache larger with max_cache_len when its prompt is read",
            )

    def after(self, tokens: int) -> StaticRows:
        """The rows once so many tokens were written."""
        self._ledger.written = self.written + tokens
        return replace(self, written=self.written + tokens)


def check_cache_length(length: object, prompt: int, new: int) -> int:
    """How many rows behind a prompt a cache of `length` rows has.

    Args:
        length: rows of a layer that keeps every token; prompt: tokens of it; new: tokens to generate. The last of
            them is never read, so it needs no row.

    Raises:
        InputError: no number of rows, or fewer than the generation needs.
    """
    if not isinstance(length, int) or isinstance(length, bool) or length < 1:
        raise InputError("max_cache_len counts rows.", given=repr(length), expected="a positive integer, or None")
    if prompt + new - 1 > length:
        raise InputError(
            "The generation would go past its static cache.",
            given=f"{prompt} tokens in front and max_new_tokens={new}, max_cache_len={length}",
            expected=f"max_cache_len of at least {prompt + new - 1}",
        )
    return length - prompt


def kept_rows(shapes: Mapping[str, Sequence[int]]) -> tuple[int, ...]:
    """The rows of every group, of a cache's entries by name."""
    groups = sum(name.startswith(MASKS) for name in shapes)
    return tuple(int(shapes[mask_name(group)][1]) for group in range(groups))


def with_room(value: Tensor, name: str, room: int) -> Tensor:
    """An entry of a cache in a buffer of its own with `room` more rows, which nobody sees yet. Ranks have no rows."""
    if not is_past(name):
        return value
    axis = 2 if is_states(name) else 1
    shape = [*value.shape]
    shape[axis] += room
    buffer = value.new_zeros(shape)
    buffer.narrow(axis, 0, value.shape[axis]).copy_(value)
    return buffer
