"""Gate: every adapter's whole update is multiplied by one number, ω (WeightLoRA, Eq. 2).

    x ─▶ … update ─▶ [mul(s)] ─▶ add(base, ·)        x ─▶ … update ─▶ [mul(s)] ─▶ mul ─▶ add(base, ·)
                                                →              AdapterWeight ────┘

Sound: ω starts at 1, and 1·u is u bit for bit. The branch stays live at ω = 0, so that its gradient is still known.

Refuses a graph without adapters. Declines sites that a weight multiplies already.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from ...models.adapter_weight import AdapterWeight
from ..contract import Pass
from ..find.adapter_weights import adapter_names, find_weighted
from ..find.adapters import AdapterSite, find_sites
from ..find.required import required_sites
from ..graph.edit import emit, emit_module, own_module, tensor_value
from ..report import Declined, Outcome

aten = torch.ops.aten
_GATE = "adapter_weight"


@dataclass(frozen=True)
class InsertAdapterWeights(Pass):
    """Insert one weight per adapter; calls of layers that share one share its weight."""

    def requires(self, graph_module: fx.GraphModule) -> None:
        """At least one adapter site."""
        required_sites(graph_module)

    def apply(self, graph_module: fx.GraphModule) -> Outcome:
        """Weigh the sites that have no weight yet."""
        weighted = {item.site.name for item in find_weighted(graph_module)}
        sites, misses = find_sites(graph_module)
        declined = [Declined(name, "it has a weight already") for name in sorted(weighted)]
        declined += [Declined(miss.where, miss.reason) for miss in misses]
        names = adapter_names(sites)
        fired = [name for name in names if name not in weighted]
        targets = {name: f"{_GATE}_{index}" for index, name in enumerate(names)}
        for name in fired:
            own_module(graph_module, targets[name], AdapterWeight())
        for site in sites:
            if site.name not in weighted:
                self._weigh(graph_module, site, targets[site.name])
        return Outcome(tuple(fired), tuple(declined))

    def _weigh(self, graph_module: fx.GraphModule, site: AdapterSite, name: str) -> None:
        graph_module.get_submodule(name).to(tensor_value(site.scaled).device)
        graph, like = graph_module.graph, site.scaled
        with graph.inserting_before(site.add):
            # ω is a float32 whatever the model computes in: a number () does not change the type of what it multiplies.
            omega = emit_module(graph, name, (), shape=(), dtype=torch.float32, origin=self.name, like=like)
            product = emit(graph, aten.mul.Tensor, (site.update, omega), origin=self.name, like=like)
        site.add.replace_input_with(site.update, product)
