"""The level at which routers meet a budget: a search over the values at which any decision changes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .gate_functions import active_count, log_tail

_TOLERANCE = 0.02  # ranks; within it a level is chosen for its margin
_OUTSIDE = 1.0  # beyond the first and the last value at which a decision changes


class LevelSolver:
    """Finds levels on fixed scores.

    k(x) is a step function of the level: it falls only where the level rises past a log tail of the sorted scores
    ("coverage") or a score ("threshold"). The solver searches the intervals between those values, and among the
    intervals whose mean k is within 0.02 ranks of the best takes the middle of the widest: engines that round
    differently then make the same decisions.

    Args:
        scores: one (N, S, r) tensor a router; site_ranks: their (S,) ranks.
        rule, k_min, buckets: as for `select_ranks`.
    """

    def __init__(
        self,
        scores: Sequence[Tensor],
        site_ranks: Sequence[Tensor],
        *,
        rule: str,
        k_min: int,
        buckets: Tensor | None,
    ) -> None:
        self._ordered = [torch.sort(part, dim=-1, descending=True).values for part in scores]
        self._site_ranks = tuple(site_ranks)
        self._rule, self._k_min, self._buckets = rule, k_min, buckets
        self._edges = self._decision_values()

    def _decision_values(self) -> Tensor:
        """All values at which a decision changes, between two ends, rising: (n,) float64."""
        parts = [log_tail(part) if self._rule == "coverage" else part for part in self._ordered]
        inner = torch.unique(torch.cat([part.flatten() for part in parts]).double())
        return torch.cat([inner[:1] - _OUTSIDE, inner, inner[-1:] + _OUTSIDE])

    def mean_count(self, level: float) -> float:
        """E[k] over all examples and sites at a level."""
        counts = self.counts(level)
        return float(counts.double().mean())

    def counts(self, level: float) -> Tensor:
        """k of every example and site at a level: (N, S of all routers)."""
        parts = [
            active_count(
                part,
                torch.tensor(level, device=part.device),
                ranks,
                rule=self._rule,
                k_min=self._k_min,
                buckets=self._buckets,
            )
            for part, ranks in zip(self._ordered, self._site_ranks, strict=True)
        ]
        return torch.cat(parts, dim=1)

    def level_for(self, budget: float) -> float:
        """The level whose mean k comes nearest to `budget`; the rank count itself under the rule "fixed"."""
        if self._rule == "fixed":
            return budget
        low, high = 0, len(self._edges) - 2
        while low < high:
            middle = (low + high) // 2
            if self._mean_in(middle) <= budget:
                high = middle
            else:
                low = middle + 1
        return self._middle(self._widest_near(low, budget))

    def _mean_in(self, interval: int) -> float:
        return self.mean_count(self._middle(interval))

    def _middle(self, interval: int) -> float:
        return float(self._edges[interval] + self._edges[interval + 1]) / 2

    def _widest_near(self, interval: int, budget: float) -> int:
        """The widest of the intervals around one whose mean k is nearly as close to the budget as the best."""
        last = len(self._edges) - 2
        pair = [index for index in (interval - 1, interval) if 0 <= index <= last]
        best = min(pair, key=lambda index: abs(self._mean_in(index) - budget))
        decisions = sum(part.shape[0] * part.shape[1] for part in self._ordered)
        # Passing one value changes one decision, by at most all ranks.
        largest = max(int(ranks.max()) for ranks in self._site_ranks)
        reach = int(_TOLERANCE * decisions / largest)
        first, end = max(best - reach, 0), min(best + reach, last) + 1
        widths = self._edges[first + 1 : end + 1] - self._edges[first:end]
        return first + int(widths.argmax())
