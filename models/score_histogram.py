"""A streaming histogram of scores, from which κ follows for any share (MaskLoRA, appendix C: 64 to 128 bins).

    F(κ) = share of scores ≤ κ, κ = F⁻¹(1 − ρ)

Bins are equal on a logarithmic scale: scores are positive with a mean near one, and κ is needed to a relative
precision. Inside a bin F is a line.
"""

from __future__ import annotations

import torch
from torch import Tensor

LOWEST, HIGHEST = 2.0**-5, 2.0**5  # of a mean of one; beyond them a score counts in the last bin
BINS = 128
COLD = 1000  # scores: with fewer, choose by top-k


class ScoreHistogram:
    """Counts of scores seen so far.

    Args:
        bins: how many.
        window: at most so many scores count, older ones fade; None counts all alike.
    """

    def __init__(self, bins: int = BINS, window: int | None = None) -> None:
        self.window = window
        self.edges = torch.logspace(0, 1, bins + 1, base=HIGHEST / LOWEST, dtype=torch.float64) * LOWEST
        self.counts = torch.zeros(bins, dtype=torch.float64)
        self.gone = 0.0

    @property
    def total(self) -> float:
        """How many scores count."""
        return float(self.counts.sum()) + self.gone

    @property
    def is_cold(self) -> bool:
        """Whether too few scores were seen to choose by."""
        return self.total < COLD

    def observe(self, scores: Tensor, gone: int = 0) -> None:
        """Count scores (N,), and `gone` tokens that are below every κ since an earlier cut dropped them."""
        clipped = scores.detach().double().cpu().clamp(LOWEST, HIGHEST * (1 - 1e-12))
        places = (torch.bucketize(clipped, self.edges, right=True) - 1).clamp(0, len(self.counts) - 1)
        self.counts += torch.bincount(places, minlength=len(self.counts)).double()
        self.gone += gone
        if self.window is not None and self.total > self.window:
            faded = self.window / self.total
            self.counts *= faded
            self.gone *= faded

    def level(self, share: float) -> float:
        """κ such that a share of all scores is at least κ; 0 where all are to be kept."""
        below = (1 - share) * self.total - self.gone
        if below <= 0 or not self.total:
            return 0.0
        reached = torch.cumsum(self.counts, 0)
        place = int(torch.searchsorted(reached, below))
        if place >= len(self.counts):
            return float(self.edges[-1])
        inside = (below - float(reached[place] - self.counts[place])) / max(float(self.counts[place]), 1e-12)
        low, high = self.edges[place].log(), self.edges[place + 1].log()
        return float((low + inside * (high - low)).exp())
