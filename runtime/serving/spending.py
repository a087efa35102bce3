"""What a request really spends: the ranks that its adapters run at, the tokens that its last cut keeps.

Budgets are met on average over the calibration's texts; these say what the texts of a server take. They are read from
the graph's operators by a second session with more outputs (`sessions/inside.py`), so measure a sample.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..artifact import Artifact
from ..sessions.inside import InsideSession, operator_calls
from .batching import MASK, Request
from .served_model import ServedModel

_INDICES = {"GatedLora": 4, "GatedLinear": 5}
"""Operator → which of its inputs lists the ranks in use (B, K), -1 where none."""
_CUT = "SelectTokens"


class Spending:
    """Of one model. Make one with `Spending.open`."""

    def __init__(self, model: ServedModel, session: InsideSession, ranks: tuple[str, ...], kept: str | None) -> None:
        self._model, self._session, self._ranks, self._kept = model, session, ranks, kept

    @classmethod
    def open(cls, model: ServedModel, threads: int) -> Spending | None:
        """None where no operator of the graph shows a choice of ranks or tokens."""
        artifact = Artifact.open(model.folder, verify=False)
        ranks = tuple(call.inputs[place] for name, place in _INDICES.items() for call in operator_calls(artifact, name))
        cuts = operator_calls(artifact, _CUT)
        kept = cuts[-1].outputs[1] if cuts else None
        names = tuple(dict.fromkeys([*ranks, *([kept] if kept else [])]))
        return cls(model, InsideSession(artifact, names, threads=threads), ranks, kept) if names else None

    def measured(self, request: Request) -> dict[str, float]:
        """`effective_rank`, the mean over sites, and `retention`, of real tokens; each where the graph shows it."""
        budgets = self._model.spent(request)
        values = self._session.run(request.arrays, {self._model.budgets[name]: b for name, b in budgets.items()})
        return {**self._effective_rank(values), **self._retention(values, request)}

    def _effective_rank(self, values: Mapping[str, np.ndarray]) -> dict[str, float]:
        if not self._ranks:
            return {}
        return {"effective_rank": float(np.mean([np.count_nonzero(values[name] >= 0) for name in self._ranks]))}

    def _retention(self, values: Mapping[str, np.ndarray], request: Request) -> dict[str, float]:
        if self._kept is None:
            return {}
        real = int(request.arrays[MASK].sum()) if MASK in request.arrays else request.length
        return {"retention": int(values[self._kept].sum()) / max(real, 1)}
