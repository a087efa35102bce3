"""Static thresholds: gates that decide the same for every token leave the graph.

    open    update ─▶ threshold(·, base) ─▶ add(base, ·) ─▶ y   →   update ─▶ add(base, ·) ─▶ y
    shut    update ─▶ threshold(·, base) ─▶ add(base, ·) ─▶ y   →   base ─▶ y

Exact where the threshold is zero and stays it; see `settle.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from ..contract import Pass
from ..find.thresholds import find_thresholded
from ..report import Outcome
from .settle import settle


@dataclass(frozen=True)
class SettleThresholds(Pass):
    """Take gates out.

    Attributes:
        open: names of sites whose update is always taken; None opens all that are not `shut`.
        shut: names of sites whose update is never taken; it leaves the graph with everything it reads alone.
    """

    open: tuple[str, ...] | None = None
    shut: tuple[str, ...] = ()

    def apply(self, graph_module: fx.GraphModule) -> Outcome:
        """Settle each named site."""
        return settle(graph_module, find_thresholded(graph_module), open_sites=self.open, shut=self.shut)
