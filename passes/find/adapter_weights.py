"""Weighted sites: which weight of a whole adapter multiplies which site's update."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import fx

from ...models.adapter_weight import AdapterWeight
from .adapters import AdapterSite, find_sites


@dataclass(frozen=True)
class WeightedSite:
    """One adapter site whose update an adapter weight multiplies.

    Attributes:
        site: the adapter; weight: the module; call: its call; product: the multiplication of the update by it.
    """

    site: AdapterSite
    weight: AdapterWeight
    call: fx.Node
    product: fx.Node


def find_weighted(graph_module: fx.GraphModule) -> tuple[WeightedSite, ...]:
    """Every site that an adapter weight multiplies, in graph order."""
    found = []
    for site in find_sites(graph_module)[0]:
        for product in site.factors:
            call = product.args[1]
            if not isinstance(call, fx.Node) or call.op != "call_module":
                continue
            module = graph_module.get_submodule(str(call.target))
            if isinstance(module, AdapterWeight):
                found.append(WeightedSite(site, module, call, product))
    return tuple(found)


def adapter_names(sites: Iterable[AdapterSite]) -> tuple[str, ...]:
    """The adapters among sites, first call first: layers that share their weights share an adapter, and one ω."""
    return tuple(dict.fromkeys(site.name for site in sites))


def weights_by_name(graph_module: fx.GraphModule) -> dict[str, AdapterWeight]:
    """Adapter → its weight, in graph order."""
    return {item.site.name: item.weight for item in find_weighted(graph_module)}
