"""The cache of one batch of sequences, between two calls of an engine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...errors import InputError
from ..cache_names import is_cross, is_states
from .static_rows import StaticRows


@dataclass(frozen=True)
class Cache:
    """Keys and values of every layer, with the positions and the visibility of their rows.

    Attributes:
        entries: the decode graph's input name → the engine's own array: `past_key_values.{i}.key` (B, H, S, d), ….
        owner: which engine made it; budget: at which budget.
        last: position of each sequence's last token, B of them, of an encoder-decoder in its answer.
        rows: S of every layer, of an encoder-decoder its answer's and then what each layer reads of the encoder.
        bytes: of keys and values.
        static: which rows of a cache of fixed size are written; None where it grows.
    """

    entries: Mapping[str, Any]
    owner: str
    budget: object
    last: tuple[int, ...]
    rows: tuple[int, ...]
    bytes: int
    static: StaticRows | None = None

    def check(self, owner: str, budget: object, batch: int) -> None:
        """Refuse to go on where it was not made.

        Raises:
            InputError: another model's cache, one of another budget, or of another batch.
        """
        if self.owner != owner:
            raise InputError(
                "The cache was made by another model.", given=self.owner, expected=owner, remedy="pass the whole prompt"
            )
        if budget != self.budget:
            raise InputError(
                "The cache was made at another budget: its layers keep other rows.",
                given=f"a cache of budget {self.budget!r}, now budget {budget!r}",
                expected=f"budget {self.budget!r}",
                remedy="set the budget back, or pass the whole prompt again",
            )
        if len(self.last) != batch:
            raise InputError(
                "The cache holds another number of sequences.", given=f"{batch} rows", expected=f"{len(self.last)} rows"
            )

    def check_in_line(self, mask: Tensor) -> None:
        """Refuse tokens (B, T) that would not stand right behind the cached rows of an encoder-decoder's answer.

        Raises:
            InputError: padding among the tokens, or a row that ended before the others did.
        """
        written = self.rows[0] if self.rows else 0
        for row, (last, real) in enumerate(zip(self.last, mask.tolist(), strict=True)):
            if any(real) and (last + 1 != written or not all(real)):
                raise InputError(
                    "An encoder-decoder's answers go on together, token by token.",
                    given=f"row {row} with {last + 1} of {written} tokens so far, and {sum(real)} of {len(real)} more",
                    expected="rows that all have the same number of tokens, without padding",
                    remedy="generate with stop=() where a cache is to be gone on from, or pass the source again",
                )


def key_names(names: Iterable[str]) -> list[str]:
    """Those that hold keys, layer by layer; what is read of an encoder stands last."""
    keys = [name for name in names if is_states(name) and name.endswith("key")]
    return sorted(keys, key=lambda name: (is_cross(name), int(name.split(".")[1])))
