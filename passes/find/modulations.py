"""Modulated sites: which gate on whole updates multiplies which adapter's update, LoRA or HiRA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import fx

from ...models.modulation import HardModulation, Modulation, SoftModulation
from .adapters import AdapterSite, find_sites
from .hira import HiraSite, find_hira_sites

aten = torch.ops.aten
UpdateSite: TypeAlias = AdapterSite | HiraSite
Gate: TypeAlias = Modulation | SoftModulation | HardModulation

_SPREAD = (aten.unsqueeze.default, aten.to.dtype)


@dataclass(frozen=True)
class ModulatedSite:
    """One adapter site whose update a modulation multiplies.

    Attributes:
        site: the adapter; gate: the call of the module; module: the module itself.
        product: the multiplication of the update by the gate.
    """

    site: UpdateSite
    gate: fx.Node
    module: Gate
    product: fx.Node

    @property
    def gated(self) -> fx.Node:
        """The gated update."""
        return self.product


def update_sites(graph_module: fx.GraphModule) -> tuple[UpdateSite, ...]:
    """Every LoRA and HiRA site, in graph order."""
    position = {node: index for index, node in enumerate(graph_module.graph.nodes)}
    sites: list[UpdateSite] = [*find_sites(graph_module)[0], *find_hira_sites(graph_module)]
    return tuple(sorted(sites, key=lambda site: position[site.up]))


def find_modulated(graph_module: fx.GraphModule) -> tuple[ModulatedSite, ...]:
    """Every site that a modulation gates, in graph order."""
    found = []
    for site in update_sites(graph_module):
        for product in site.factors:
            gate = _source(product.args[1])
            module = graph_module.get_submodule(str(gate.target)) if gate is not None else None
            if gate is not None and isinstance(module, (Modulation, SoftModulation, HardModulation)):
                found.append(ModulatedSite(site, gate, module, product))
    return tuple(found)


def modulations_of(graph_module: fx.GraphModule) -> tuple[Modulation, ...]:
    """The training gates that a graph calls, in graph order."""
    return tuple(item.module for item in find_modulated(graph_module) if isinstance(item.module, Modulation))


def _source(factor: object) -> fx.Node | None:
    """The call of a module that a factor comes from, through its spreading over the features and its type."""
    node = factor
    while isinstance(node, fx.Node) and node.target in _SPREAD:
        node = node.args[0]
    return node if isinstance(node, fx.Node) and node.op == "call_module" else None
