"""Static modulations: gates that decide the same for every token leave the graph.

    open    update ─▶ mul(gate) ─▶ add(base, ·) ─▶ y   →   update ─▶ add(base, ·) ─▶ y
    shut    update ─▶ mul(gate) ─▶ add(base, ·) ─▶ y   →   base ─▶ y

Exact where the gate is 1 (0) for every token; see `settle.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from ..contract import Pass
from ..find.modulations import find_modulated
from ..report import Outcome
from .settle import settle


@dataclass(frozen=True)
class SettleModulations(Pass):
    """Take gates out.

    Attributes:
        open: names of sites whose update is always taken; None opens all that are not `shut`.
        shut: names of sites whose update is never taken; it leaves the graph with everything it reads alone.
    """

    open: tuple[str, ...] | None = None
    shut: tuple[str, ...] = ()

    def apply(self, graph_module: fx.GraphModule) -> Outcome:
        """Settle each named site."""
        return settle(graph_module, find_modulated(graph_module), open_sites=self.open, shut=self.shut)
