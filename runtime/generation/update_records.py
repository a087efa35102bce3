"""What gates on tokens decided in a generation, adapter by adapter, apart for prefill and decode (TS-PEFT, GateRA).

records = UpdateRecords()
gatefx.generate(fast, ids, mask, records=records).tokens
records.prefill["model.layers.0.self_attn.q_proj"].share, records.decode["model.layers.0.self_attn.q_proj"].share
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Phase = Literal["prefill", "decode"]


@dataclass(frozen=True)
class UpdateCount:
    """How often one adapter's update was taken.

    Attributes:
        taken: real tokens that took the update, of soft gates the sum of g; tokens: real tokens that were read.
    """

    taken: float
    tokens: int

    @property
    def share(self) -> float:
        """Share of the tokens that took the update, of soft gates the mean g; 0 where no token was read."""
        return self.taken / self.tokens if self.tokens else 0.0


class UpdateRecords:
    """Counts of one generation or several, by adapter. Padding, and rows that stopped, count nowhere."""

    def __init__(self) -> None:
        self._counts: dict[Phase, dict[str, UpdateCount]] = {"prefill": {}, "decode": {}}

    @property
    def prefill(self) -> Mapping[str, UpdateCount]:
        """Adapter → its count over prompts."""
        return self._counts["prefill"]

    @property
    def decode(self) -> Mapping[str, UpdateCount]:
        """Adapter → its count over tokens behind a cache: those that were generated and read again."""
        return self._counts["decode"]

    def add(self, phase: Phase, site: str, gate: Tensor, real: Tensor) -> None:
        """Count one call: gate (B, T) in [0, 1] or bool, real (B, T) 1 at real tokens."""
        before = self._counts[phase].get(site, UpdateCount(0.0, 0))
        taken, tokens = float((gate.float() * real).sum()), int(real.sum())
        self._counts[phase][site] = UpdateCount(before.taken + taken, before.tokens + tokens)
