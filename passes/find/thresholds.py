"""Thresholded sites: which threshold on whole updates gates which adapter's update."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from ...models.update_threshold import HardUpdateThreshold, UpdateThreshold
from .modulations import UpdateSite, update_sites


@dataclass(frozen=True)
class ThresholdedSite:
    """One site whose update a threshold gates.

    Attributes:
        site: the adapter; call: the call of the module, which answers with the gated update; module: the module.
    """

    site: UpdateSite
    call: fx.Node
    module: UpdateThreshold | HardUpdateThreshold


def find_thresholded(graph_module: fx.GraphModule) -> tuple[ThresholdedSite, ...]:
    """Every site that a threshold gates, in graph order."""
    found = []
    for site in update_sites(graph_module):
        for factor in site.factors:
            module = graph_module.get_submodule(str(factor.target)) if factor.op == "call_module" else None
            if isinstance(module, (UpdateThreshold, HardUpdateThreshold)):
                found.append(ThresholdedSite(site, factor, module))
    return tuple(found)


def thresholds_of(graph_module: fx.GraphModule) -> dict[str, UpdateThreshold]:
    """Site → its training gate, in graph order; calls of a layer that is shared share its gate."""
    found = find_thresholded(graph_module)
    return {item.site.name: item.module for item in found if isinstance(item.module, UpdateThreshold)}
