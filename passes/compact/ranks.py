"""Compact ranks: a site's masked update → one operator that computes the active rank directions only (CCM-LoRA Eq. 8).

    x ─▶ linear(A) ─▶ mul(mask) ─▶ linear(B) ─▶ mul(s) ─▶ add ─▶ y
                                                           →  gated_lora(base, x, A, B, indices, s) ─▶ y

Sound: masked directions contribute zero to B·diag(g)·A x, so summing over the active ones alone is the same sum.

Refuses sites whose gate is not a hardened router's mask, and those that `sites` does not name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from ...models.gates import RankMask
from ...runtime.ops.schema import MOST_RANK
from ..contract import Pass
from ..find.adapters import AdapterSite, find_sites
from ..find.gates import gate_source
from ..graph.edit import emit, shape_of
from ..report import Declined, Outcome
from .scale import scale_tensor

aten = torch.ops.aten


@dataclass(frozen=True)
class CompactRanks(Pass):
    """Gather the active ranks at the named sites.

    Attributes:
        sites: names of the sites to compact.
        kept: (name, reason) of sites that stay masked by choice; reported as declined.
    """

    sites: tuple[str, ...]
    kept: tuple[tuple[str, str], ...] = ()

    after: ClassVar[tuple[str, ...]] = ("HardenRankRouters",)

    def apply(self, graph_module: fx.GraphModule) -> Outcome:
        """Rewrite each named site whose gate is a hardened mask."""
        fired, declined = [], []
        # Outermost first: where adapters are stacked on one layer, one's sum is the next one's base.
        for site in reversed(find_sites(graph_module)[0]):
            if site.name not in self.sites:
                continue
            source, index = gate_source(site) if site.gate is not None else (None, 0)
            if source is None or not _is_mask(source, graph_module):
                declined.append(Declined(site.name, "its gate is not the mask of a hardened rank router"))
                continue
            if site.rank > MOST_RANK:
                declined.append(Declined(site.name, f"kernels take ranks up to {MOST_RANK}"))
                continue
            if site.factors:
                declined.append(Declined(site.name, "its update is gated as a whole too"))
                continue
            self._compact(graph_module, site, source.all_input_nodes[0], index)
            fired.append(site.name)
        graph_module.graph.eliminate_dead_code(is_impure_node=lambda n: n.op in ("placeholder", "output"))
        graph_module.delete_all_unused_submodules()
        declined += [Declined(name, reason) for name, reason in self.kept]
        return Outcome(tuple(reversed(fired)), tuple(declined))

    def _compact(self, graph_module: fx.GraphModule, site: AdapterSite, indices: fx.Node, index: int) -> None:
        graph = graph_module.graph
        with graph.inserting_before(site.add):
            scale = scale_tensor(graph_module, site, origin=self.name)
            own = emit(graph, aten.select.int, (indices, 1, index), origin=self.name, like=site.add)
            if site.rank < shape_of(own)[-1]:
                own = emit(graph, aten.slice.Tensor, (own, 1, 0, site.rank), origin=self.name, like=site.add)
            arguments = (site.base, site.x, site.lora_a, site.lora_b, own, scale)
            total = emit(graph, torch.ops.gatefx.gated_lora.default, arguments, origin=self.name, like=site.add)
        site.add.replace_all_uses_with(total)
        graph.erase_node(site.add)


def _is_mask(node: fx.Node, graph_module: fx.GraphModule) -> bool:
    return node.op == "call_module" and isinstance(graph_module.get_submodule(str(node.target)), RankMask)
