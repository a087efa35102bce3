"""The cache of one batch of sequences, between two calls of an engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import InputError


@dataclass(frozen=True)
class Cache:
    """Keys and values of every layer, with the positions and the visibility of their rows.

    Attributes:
        entries: the decode graph's input name → the engine's own array: `past_key_values.{i}.key` (B, H, S, d), ….
        owner: which engine made it; budget: at which budget.
        last: position of each sequence's last token, B of them; rows: S of every layer; bytes: of keys and values.
    """

    entries: Mapping[str, Any]
    owner: str
    budget: object
    last: tuple[int, ...]
    rows: tuple[int, ...]
    bytes: int

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
