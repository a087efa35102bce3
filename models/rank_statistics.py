"""What a routing does, in numbers: effective ranks, entropy, collapse, stability, divergence between groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

_SATURATED = 0.95  # share of the rank beyond which a batch counts as always on
_ABSENT = 0.05  # … below which it counts as always off
_CONSTANT = 0.01  # mean deviation from the batch's mean mask below which all examples have one mask

Array = NDArray[np.float64]


@dataclass(frozen=True)
class RankSummary:
    """The distribution of k(x) over examples and sites, in ranks."""

    mean: float
    p50: float
    p90: float
    p95: float

    def __str__(self) -> str:
        return f"mean {self.mean:.2f}, P50 {self.p50:g}, P90 {self.p90:g}, P95 {self.p95:g}"


def rank_summary(counts: NDArray[np.generic]) -> RankSummary:
    """Mean and percentiles of effective ranks; counts of any shape."""
    values = np.asarray(counts, dtype=np.float64).ravel()
    p50, p90, p95 = np.percentile(values, [50, 90, 95])
    return RankSummary(float(values.mean()), float(p50), float(p90), float(p95))


def collapse(gate: Array, site_ranks: NDArray[np.generic]) -> str | None:
    """How a batch's masks (B, S, r) degenerated: "always on", "always off", "constant", or None.

    "Constant" means that every example got the same mask (batches of one cannot tell).
    """
    share = float((gate.sum(-1) / np.asarray(site_ranks)).mean())
    if share > _SATURATED:
        return "always on"
    if share < _ABSENT:
        return "always off"
    if len(gate) > 1 and float(np.abs(gate - gate.mean(0)).mean()) < _CONSTANT:
        return "constant"
    return None


def direction_usage(gate: Array) -> Array:
    """How often each rank direction is active: (B, S, r) → (S, r)."""
    return np.asarray(gate.mean(0), dtype=np.float64)


def jaccard(first: Array, second: Array) -> float:
    """Stability of active sets: |∩|/|∪| averaged over examples and sites; masks (B, S, r)."""
    both = np.minimum(first, second).sum(-1)
    either = np.maximum(first, second).sum(-1)
    return float(np.where(either > 0, both / np.maximum(either, 1e-12), 1.0).mean())


def jensen_shannon(first: Array, second: Array) -> float:
    """Divergence (nats) between two groups' direction usage, averaged over sites; gates (B, S, r) and (B', S, r)."""
    p, q = (_distribution(direction_usage(gate)) for gate in (first, second))
    middle = (p + q) / 2
    return float(((_relative_entropy(p, middle) + _relative_entropy(q, middle)) / 2).mean())


def elasticity(points: Sequence[tuple[float, float]]) -> list[float]:
    """ΔScore/ΔE[k] between neighbouring (E[k], score) points, in order of E[k] (Eq. 13)."""
    ordered = sorted(points)
    return [(s1 - s0) / (k1 - k0) for (k0, s0), (k1, s1) in pairwise(ordered) if k1 > k0]


def _distribution(usage: Array) -> Array:
    return np.asarray(usage / np.maximum(usage.sum(-1, keepdims=True), 1e-12))


def _relative_entropy(p: Array, q: Array) -> Array:
    return np.asarray(np.where(p > 0, p * np.log(np.maximum(p, 1e-12) / np.maximum(q, 1e-12)), 0.0).sum(-1))
