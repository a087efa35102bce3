"""Harden: adapter weights → sites that stay whole, and sites multiplied by zero.

    kept      mul(s) ─▶ mul(AdapterWeight) ─▶ add   →   mul(s·ω) ─▶ add
    dropped   mul(s) ─▶ mul(AdapterWeight) ─▶ add   →   mul(s) ─▶ mul(0) ─▶ add

Exact where the choice is final: ω is 1 or 0 then. The zero is kept in the masked graph as what dropping a site means;
`compact/sites.py` takes the branch out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from ...errors import PassError
from ...models.adapter_weight import AdapterWeight
from ..contract import Approximate, Exact, Pass
from ..find.adapter_weights import WeightedSite, find_weighted
from ..graph.edit import emit_attribute, get_tensor, own_tensor
from ..report import Outcome


@dataclass(frozen=True)
class HardenAdapterWeights(Pass):
    """Settle every adapter weight.

    Attributes:
        dropped: names of the sites that go; all others stay whole.
    """

    dropped: tuple[str, ...] = ()

    after: ClassVar[tuple[str, ...]] = ("FreezeRegularization",)
    exactness: ClassVar[Exact | Approximate] = Approximate("weights become 0 or 1")

    def apply(self, graph_module: fx.GraphModule) -> Outcome:
        """Settle each weight."""
        found = find_weighted(graph_module)
        for item in found:
            if item.site.name in self.dropped:
                self._drop(graph_module, item)
            else:
                self._absorb(graph_module, item)
        graph_module.delete_all_unused_submodules()
        return Outcome(tuple(dict.fromkeys(item.site.name for item in found)))

    def ensures(self, graph_module: fx.GraphModule) -> None:
        """No weight is left."""
        for node in graph_module.graph.find_nodes(op="call_module"):
            if isinstance(graph_module.get_submodule(str(node.target)), AdapterWeight):
                raise PassError(f"{self.name} left the weight {node.target} in the graph.")

    def _drop(self, graph_module: fx.GraphModule, item: WeightedSite) -> None:
        name = f"{item.call.target}_dropped.omega"
        own_tensor(graph_module, name, torch.zeros((), device=item.weight.omega.device))
        with graph_module.graph.inserting_before(item.call):
            zero = emit_attribute(graph_module, name, origin=self.name, like=item.product)
        item.call.replace_all_uses_with(zero)
        graph_module.graph.erase_node(item.call)

    def _absorb(self, graph_module: fx.GraphModule, item: WeightedSite) -> None:
        """Multiply the site's scale by ω, and leave the update without its weight."""
        omega, site = float(item.weight.omega), item.site
        if omega == 1.0:
            bypass(graph_module, item)
        elif site.scaled is site.up:  # a site without a scale gets ω as its scale
            item.product.update_arg(1, omega)
            graph_module.graph.erase_node(item.call)
        elif isinstance(site.scale, fx.Node):
            name = f"{item.call.target}_kept.scale"
            own_tensor(graph_module, name, get_tensor(graph_module, str(site.scale.target)) * omega)
            with graph_module.graph.inserting_before(site.scaled):
                scale = emit_attribute(graph_module, name, origin=self.name, like=site.scaled)
            site.scaled.replace_input_with(site.scale, scale)
            bypass(graph_module, item)
        else:
            site.scaled.args = tuple(
                argument if argument is site.up else site.scale * omega for argument in site.scaled.args
            )
            bypass(graph_module, item)


@dataclass(frozen=True)
class OpenAdapterWeights(Pass):
    """Take every adapter weight out, which leaves the plain adapters bit for bit."""

    exactness: ClassVar[Exact | Approximate] = Approximate("every weight becomes 1")

    def apply(self, graph_module: fx.GraphModule) -> Outcome:
        """Take each weight out."""
        found = find_weighted(graph_module)
        for item in found:
            bypass(graph_module, item)
        graph_module.delete_all_unused_submodules()
        return Outcome(tuple(dict.fromkeys(item.site.name for item in found)))


def bypass(graph_module: fx.GraphModule, item: WeightedSite) -> None:
    """Leave the update as it is without its weight."""
    (update,) = (node for node in item.product.all_input_nodes if node is not item.call)
    item.product.replace_all_uses_with(update)
    graph_module.graph.erase_node(item.product)
    graph_module.graph.erase_node(item.call)
