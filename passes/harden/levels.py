"""Levels that meet a share: of all scores that tokens got at all sites, how many are at or above one number."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

#: Share of tokens×sites within which a budget counts as met.
NEAR = 0.002

_SHARES = tuple(round(0.05 * step, 2) for step in range(1, 21))


def level_for(scores: Mapping[str, Tensor], budget: float) -> float:
    """The level that a share `budget` of all scores reaches, halfway to the next smaller one."""
    ranked = torch.cat(list(scores.values())).double().sort(descending=True).values
    kept = min(max(round(budget * len(ranked)), 1), len(ranked))
    if kept == len(ranked):
        return float(np.nextafter(np.float32(ranked[-1]), np.float32(-np.inf)))
    return float((ranked[kept - 1] + ranked[kept]) / 2)


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
