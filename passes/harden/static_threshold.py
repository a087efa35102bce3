"""Static thresholds: gates that decide the same for every token leave the graph.

    open    update ─▶ threshold(·, base) ─▶ add(base, ·) ─▶ y   →   update ─▶ add(base, ·) ─▶ y
    shut    update ─▶ threshold(·, base) ─▶ add(base, ·) ─▶ y   →   base ─▶ y

Exact where every token takes (skips) the update: when gates are opened on purpose, or where the threshold is zero and
stays it. Where that was only observed on data the caller says so by naming the sites; see optimize(freeze_static=True).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from ..contract import Pass
from ..find.thresholds import ThresholdedSite, find_thresholded
from ..report import Outcome


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
        fired = []
        # Outermost first: where adapters are stacked on one layer, one's sum is the next one's base.
        for item in reversed(find_thresholded(graph_module)):
            if item.site.name in self.shut:
                _shut(graph_module.graph, item)
            elif self.open is None or item.site.name in self.open:
                _open(graph_module.graph, item)
            else:
                continue
            fired.append(item.site.name)
        if fired:
            graph_module.graph.eliminate_dead_code(is_impure_node=lambda n: n.op in ("placeholder", "output"))
            graph_module.delete_all_unused_submodules()
        return Outcome(tuple(dict.fromkeys(reversed(fired))))


def _open(graph: fx.Graph, item: ThresholdedSite) -> None:
    item.call.replace_all_uses_with(item.call.all_input_nodes[0])
    graph.erase_node(item.call)


def _shut(graph: fx.Graph, item: ThresholdedSite) -> None:
    item.site.add.replace_all_uses_with(item.site.base)
    graph.erase_node(item.site.add)
