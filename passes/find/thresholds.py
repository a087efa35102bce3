"""Thresholded sites: which threshold on whole updates gates which adapter's update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from torch import fx

from ...models.update_threshold import HardUpdateThreshold, UpdateThreshold
from .adapters import AdapterSite, find_sites
from .added import AddedSite, find_added_sites
from .hira import HiraSite, find_hira_sites

AnySite: TypeAlias = AdapterSite | HiraSite | AddedSite


@dataclass(frozen=True)
class ThresholdedSite:
    """One site whose update a threshold gates.

    Attributes:
        site: the adapter; call: the call of the module, which answers with the gated update; module: the module.
    """

    site: AnySite
    call: fx.Node
    module: UpdateThreshold | HardUpdateThreshold

    @property
    def gated(self) -> fx.Node:
        """The gated update."""
        return self.call


def additive_sites(graph_module: fx.GraphModule) -> tuple[AnySite, ...]:
    """Every adapter of any kind that adds an update to a linear layer, in graph order."""
    position = {node: index for index, node in enumerate(graph_module.graph.nodes)}
    sites: list[AnySite] = [
        *find_sites(graph_module)[0],
        *find_hira_sites(graph_module),
        *find_added_sites(graph_module),
    ]
    return tuple(sorted(sites, key=lambda site: position[site.add]))


def find_thresholded(graph_module: fx.GraphModule) -> tuple[ThresholdedSite, ...]:
    """Every site that a threshold gates, in graph order."""
    found = []
    for site in additive_sites(graph_module):
        for factor in site.factors:
            module = graph_module.get_submodule(str(factor.target)) if factor.op == "call_module" else None
            if isinstance(module, (UpdateThreshold, HardUpdateThreshold)):
                found.append(ThresholdedSite(site, factor, module))
    return tuple(found)


def thresholds_of(graph_module: fx.GraphModule) -> dict[str, UpdateThreshold]:
    """Site → its training gate, in graph order; calls of a layer that is shared share its gate."""
    found = find_thresholded(graph_module)
    return {item.site.name: item.module for item in found if isinstance(item.module, UpdateThreshold)}
