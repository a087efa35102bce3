"""Levels that meet a share: of all scores that tokens got at all sites, how many are at or above one number."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

#: Share of tokens×sites within which a budget counts as met.
NEAR = 0.002

#: How far apart scores are that differ by more than rounding, relative to those around them.
_ROUNDING = 1e-5

_SHARES = tuple(round(0.05 * step, 2) for step in range(1, 21))


def level_for(scores: Mapping[str, Tensor], budget: float) -> float:
    """The level that a share `budget` of all scores reaches, in the middle of the widest gap within `NEAR` of it.

    Scores that are equal but for rounding (a token that all examples share) are never told apart: engines that round
    differently would decide differently. Where all near ones are, the level lies beside them.
    """
    ranked = torch.cat(list(scores.values())).double().sort(descending=True).values
    kept = min(max(round(budget * len(ranked)), 1), len(ranked))
    if kept == len(ranked):
        return float(np.nextafter(np.float32(ranked[-1]), np.float32(-np.inf)))
    gap = _gap_near(ranked, kept)
    return float((ranked[gap] + ranked[gap + 1]) / 2)


def _gap_near(ranked: Tensor, kept: int) -> int:
    """Which gap of the falling scores (n,) separates about `kept` of them: i lies between i and i + 1."""
    reach = int(NEAR * len(ranked))
    first, last = max(kept - 1 - reach, 0), min(kept - 1 + reach, len(ranked) - 2)
    nearby = ranked[first : last + 2]
    widest = first + int((nearby[:-1] - nearby[1:]).argmax())
    # Typical scores, not the largest: one outlier would make all others look equal.
    rounding = _ROUNDING * float(torch.maximum(nearby.abs().max(), ranked.abs().median()))
    if float(nearby[0] - nearby[-1]) > rounding:
        return widest
    higher, lower = int((ranked > nearby[0] + rounding).sum()), int((ranked >= nearby[-1] - rounding).sum())
    edges = [edge - 1 for edge in (higher, lower) if 0 < edge < len(ranked)]
    return min(edges, key=lambda edge: abs(edge + 1 - kept), default=widest)


def share_above(scores: Mapping[str, Tensor], level: float) -> float:
    """The share of all scores at or above a level."""
    values = torch.cat(list(scores.values()))
    return float((values >= torch.tensor(level, dtype=torch.float32)).double().mean())


def level_table(scores: Mapping[str, Tensor], share: float, level: float) -> tuple[tuple[float, float], ...]:
    """Levels of round shares, and the calibrated one at its own; levels never rise with the share."""
    levels = {value: level_for(scores, value) for value in _SHARES if abs(value - share) > NEAR} | {share: level}
    shares = sorted(value for value in levels if value > 0)
    falling = np.minimum.accumulate([levels[value] for value in shares])
    return tuple((value, float(falling[index])) for index, value in enumerate(shares))
