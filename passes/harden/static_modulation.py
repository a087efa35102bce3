"""Static modulations: gates that decide the same for every token leave the graph.

    open    update ─▶ mul(gate) ─▶ add(base, ·) ─▶ y   →   update ─▶ add(base, ·) ─▶ y
    shut    update ─▶ mul(gate) ─▶ add(base, ·) ─▶ y   →   base ─▶ y

Exact where the gate is 1 (0) for every token: when gates are opened on purpose, or where a gate cannot vary. Where
that was only observed on data the caller says so by naming the sites; see optimize(freeze_static=True).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from ..contract import Pass
from ..find.modulations import ModulatedSite, find_modulated
from ..report import Outcome


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
        fired = []
        # Outermost first: where adapters are stacked on one layer, one's sum is the next one's base.
        for item in reversed(find_modulated(graph_module)):
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
        return Outcome(tuple(reversed(fired)))


def _open(graph: fx.Graph, item: ModulatedSite) -> None:
    item.product.replace_all_uses_with(item.product.all_input_nodes[0])
    graph.erase_node(item.product)


def _shut(graph: fx.Graph, item: ModulatedSite) -> None:
    item.site.add.replace_all_uses_with(item.site.base)
    graph.erase_node(item.site.add)
