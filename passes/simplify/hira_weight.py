"""Precompute: a HiRA update's weight, which every call would build again, is built once.

    x ─▶ linear(mul(W0, mm(B, A))) ─▶ [mul(s)] ─▶ …   →   x ─▶ linear(ΔW) ─▶ …      ΔW = s·W0 ⊙ B A

Exact up to rounding. What stands around the update, gates on it included, stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx, nn

from ..contract import Pass
from ..find.hira import HiraSite, find_hira_sites
from ..graph.edit import emit, emit_attribute, get_tensor, own_tensor
from ..report import Outcome
from .update_weight import update_weight

aten = torch.ops.aten


@dataclass(frozen=True)
class PrecomputeHira(Pass):
    """Give every HiRA update a weight of its own."""

    def apply(self, graph_module: fx.GraphModule) -> Outcome:
        """Rewrite every HiRA site."""
        sites = find_hira_sites(graph_module)
        for site in sites:
            self._precompute(graph_module, site)
        if sites:
            graph_module.graph.eliminate_dead_code(is_impure_node=lambda n: n.op in ("placeholder", "output"))
            graph_module.delete_all_unused_submodules()
        return Outcome(tuple(site.name for site in sites))

    def _precompute(self, graph_module: fx.GraphModule, site: HiraSite) -> None:
        name = f"{site.path}.update_weight"
        dtype = get_tensor(graph_module, str(site.weight.target)).dtype
        delta = update_weight(graph_module, site).to(dtype).contiguous()
        own_tensor(graph_module, name, nn.Parameter(delta, requires_grad=False))
        with graph_module.graph.inserting_before(site.up):
            weight = emit_attribute(graph_module, name, origin=self.name, like=site.up)
            update = emit(
                graph_module.graph, aten.linear.default, (site.branch_input, weight), origin=self.name, like=site.up
            )
        site.scaled.replace_all_uses_with(update)
