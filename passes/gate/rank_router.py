"""Gate: every adapter site's update passes through a rank gate that one router computes per example (CCM-LoRA Eq. 4).

    x ─▶ linear(A) ─▶ linear(B) ─▶ …        x ─▶ linear(A) ─▶ mul ─▶ linear(B) ─▶ …
                                      →                        ▲
                                            x₁, mask ─▶ RankRouter ─▶ select(site) ─▶ unsqueeze

Sound: diag(g) stands between A and B, so an open gate (g = 1) is the plain adapter bit for bit and a shut one adds
zero. The router reads the state x₁ that enters the first adapted layer ("first_site"), or each site's own ("site"),
and the attention mask where it has that state's length.

Refuses a graph without sites, and sites that have a gate already.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from ...errors import SiteError
from ...models.configs.ccm import CCM
from ...models.families import ATTENTION_MASK
from ...models.gates import RankRouter
from ..contract import Pass
from ..find.adapters import AdapterSite, find_sites
from ..find.layer_names import layer_of
from ..graph.edit import emit, emit_module, own_module, shape_of, tensor_value
from ..report import Declined, Outcome

aten = torch.ops.aten
_ROUTER = "rank_router"
_STATE_AXES = 3


@dataclass(frozen=True)
class InsertRankRouter(Pass):
    """Insert one rank router (or one per site) and gate every site with it.

    Attributes:
        config: the method's options; budget: E[k] in ranks.
    """

    config: CCM
    budget: float

    def requires(self, graph_module: fx.GraphModule) -> None:
        """At least one adapter site."""
        sites, misses = find_sites(graph_module)
        if not sites:
            raise SiteError(
                "The model has no adapter to route.",
                given="; ".join(f"{m.where}: {m.reason}" for m in misses) or "no LoRA branch in the captured graph",
                expected="a PEFT model with LoRA, or a model whose linears gatefx may adapt itself",
                remedy='call gatefx.prepare(model, method="ccm", budget=6, rank=16, example_inputs=batch)',
            )

    def apply(self, graph_module: fx.GraphModule) -> Outcome:
        """Gate the sites that have none yet."""
        sites, misses = find_sites(graph_module)
        open_sites = [site for site in sites if site.gate is None]
        declined = [Declined(site.name, "it has a gate already") for site in sites if site.gate is not None]
        declined += [Declined(miss.where, miss.reason) for miss in misses]
        if self.config.router_input == "site":
            for index, site in enumerate(open_sites):
                self._route(graph_module, [site], f"{_ROUTER}_{index}")
        elif open_sites:
            self._route(graph_module, open_sites, _ROUTER)
        return Outcome(tuple(site.name for site in open_sites), tuple(declined))

    def _route(self, graph_module: fx.GraphModule, sites: list[AdapterSite], name: str) -> None:
        state = sites[0].x
        router = RankRouter(
            self.config,
            width=sites[0].d_in,
            ranks=tuple(site.rank for site in sites),
            head_of_site=self._heads(sites),
            budget=self.budget,
        )
        weight = tensor_value(state)
        own_module(graph_module, name, router.to(weight.dtype))
        graph = graph_module.graph
        mask = real_token_mask(graph_module, state)
        arguments = (state,) if mask is None else (state, mask)
        shape = (shape_of(state)[0], len(sites), router.max_rank)
        with graph.inserting_after(_later(graph, state, mask)):
            gate = emit_module(graph, name, arguments, shape=shape, dtype=weight.dtype, origin=self.name, like=state)
        for index, site in enumerate(sites):
            self._gate(graph, site, gate, index)

    def _gate(self, graph: fx.Graph, site: AdapterSite, gate: fx.Node, index: int) -> None:
        with graph.inserting_before(site.up):
            own = emit(graph, aten.select.int, (gate, 1, index), origin=self.name, like=site.down)
            if site.rank < shape_of(own)[-1]:
                own = emit(graph, aten.slice.Tensor, (own, 1, 0, site.rank), origin=self.name, like=site.down)
            for _ in range(len(shape_of(site.down)) - 2):
                own = emit(graph, aten.unsqueeze.default, (own, 1), origin=self.name, like=site.down)
            gated = emit(graph, aten.mul.Tensor, (site.down, own), origin=self.name, like=site.down)
        site.up.replace_input_with(site.down, gated)

    def _heads(self, sites: list[AdapterSite]) -> tuple[int, ...]:
        if self.config.heads == "per_module":
            return tuple(range(len(sites)))
        if self.config.heads == "shared":
            return (0,) * len(sites)
        layers = {layer: index for index, layer in enumerate(dict.fromkeys(layer_of(site.path) for site in sites))}
        return tuple(layers[layer_of(site.path)] for site in sites)


def real_token_mask(graph_module: fx.GraphModule, state: fx.Node) -> fx.Node | None:
    """The attention mask input, (B, T), where the state is (B, T, d) of the same T; else None."""
    if len(shape_of(state)) != _STATE_AXES:
        return None
    node: fx.Node
    for node in graph_module.graph.find_nodes(op="placeholder"):
        if node.target == ATTENTION_MASK and shape_of(node) == shape_of(state)[:2]:
            return node
    return None


def _later(graph: fx.Graph, state: fx.Node, mask: fx.Node | None) -> fx.Node:
    """The later of the two, and never before the last input."""
    last: list[fx.Node] = [*graph.find_nodes(op="placeholder"), state, *([mask] if mask else [])]
    position = {node: index for index, node in enumerate(graph.nodes)}
    return max(last, key=position.__getitem__)
