"""Gate: every adapter's update is multiplied by one number per token, g(x) = σ(wᵀx + b) (GateRA).

    x ─▶ … update ─▶ [mul(s)] ─▶ add(base, ·)        x ─▶ … update ─▶ [mul(s)] ─▶ mul ─▶ add(base, ·)
                                                →    └──▶ Modulation ──────────────┘

Sound: the gate stands after the scale and before the sum, so g = 1 is the plain adapter bit for bit and g = 0 adds
zero. It reads the state that enters the layer, before the adapter's dropout; where that state is (B, d), a pooled one,
the gate is one number per example. The attention mask, where the state has its length, only tells the records which
tokens are real.

Refuses a graph without adapters. Declines sites that a modulation gates already.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from ...errors import SiteError
from ...models.configs.gatera import GateRA
from ...models.modulation import Modulation
from ..contract import Pass
from ..find.adapters import find_sites
from ..find.modulations import UpdateSite, find_modulated, update_sites
from ..graph.edit import emit, emit_module, own_module, shape_of, tensor_value
from ..report import Declined, Outcome
from .rank_router import real_token_mask

aten = torch.ops.aten
_GATE = "modulation"


@dataclass(frozen=True)
class InsertModulation(Pass):
    """Insert one modulation per adapter site.

    Attributes:
        config: the method's options; budget: mean g to train towards, None for none.
    """

    config: GateRA
    budget: float | None = None

    def requires(self, graph_module: fx.GraphModule) -> None:
        """At least one adapter site."""
        if not update_sites(graph_module):
            misses = find_sites(graph_module)[1]
            raise SiteError(
                "The model has no adapter whose update could be gated.",
                given="; ".join(f"{m.where}: {m.reason}" for m in misses) or "no adapter in the captured graph",
                expected="LoRA or HiRA on linear layers",
                remedy='call gatefx.prepare(model, method="gatera", rank=16, example_inputs=batch)',
            )

    def apply(self, graph_module: fx.GraphModule) -> Outcome:
        """Gate the sites that no modulation gates yet."""
        gated = {item.site.name for item in find_modulated(graph_module)}
        fired, declined = [], [Declined(name, "it has a modulation already") for name in sorted(gated)]
        declined += [Declined(miss.where, miss.reason) for miss in find_sites(graph_module)[1]]
        for index, site in enumerate(update_sites(graph_module)):
            if site.name not in gated:
                self._gate(graph_module, site, f"{_GATE}_{index}")
                fired.append(site.name)
        return Outcome(tuple(fired), tuple(declined))

    def _gate(self, graph_module: fx.GraphModule, site: UpdateSite, name: str) -> None:
        value = tensor_value(site.x)
        gate = Modulation(self.config, width=site.d_in, budget=self.budget)
        own_module(graph_module, name, gate.to(device=value.device, dtype=value.dtype))
        graph = graph_module.graph
        mask = real_token_mask(graph_module, site.x)
        arguments = (site.x,) if mask is None else (site.x, mask)
        shape = (*shape_of(site.x)[:-1], 1)
        with graph.inserting_before(site.add):
            factor = emit_module(
                graph, name, arguments, shape=shape, dtype=value.dtype, origin=self.name, like=site.scaled
            )
            product = emit(graph, aten.mul.Tensor, (site.update, factor), origin=self.name, like=site.scaled)
        site.add.replace_input_with(site.update, product)
