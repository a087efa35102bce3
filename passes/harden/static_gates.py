"""Static gates: a site whose decision never varies → a plain LoRA site of the ranks that stay.

    x ─▶ linear(A) ─▶ mul(gate) ─▶ linear(B) ─▶ …   →   x ─▶ linear(A[I]) ─▶ linear(B[:, I]) ─▶ …

Exact where `active` holds for every input (all directions of a site whose rank is no larger than the fewest ranks an
example may get; all directions of every site when gates are opened on purpose). Where it was only observed on data
the caller says so by choosing that set; see optimize(freeze_static=True).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx, nn

from ..contract import Pass
from ..find.adapters import AdapterSite, find_sites
from ..graph.edit import emit_attribute, get_tensor, own_tensor
from ..report import Outcome


@dataclass(frozen=True)
class FreezeStaticGates(Pass):
    """Drop the gates of the named sites, keeping the listed rank directions.

    Attributes:
        active: (site name, directions that stay, in order), for each site to freeze.
    """

    active: tuple[tuple[str, tuple[int, ...]], ...]

    def apply(self, graph_module: fx.GraphModule) -> Outcome:
        """Rewrite each named, gated site."""
        chosen = dict(self.active)
        fired = []
        for site in find_sites(graph_module)[0]:
            if site.gate is not None and site.name in chosen:
                self._freeze(graph_module, site, chosen[site.name])
                fired.append(site.name)
        graph_module.graph.eliminate_dead_code(is_impure_node=lambda n: n.op in ("placeholder", "output"))
        graph_module.delete_all_unused_submodules()
        return Outcome(tuple(fired))

    def _freeze(self, graph_module: fx.GraphModule, site: AdapterSite, directions: tuple[int, ...]) -> None:
        if site.gate is not None:
            site.up.replace_input_with(site.gate, site.down)
            graph_module.graph.erase_node(site.gate)
        if directions == tuple(range(site.rank)):
            return
        index = torch.tensor(directions, dtype=torch.int64)
        self._restrict(graph_module, site.down, site.lora_a, index, dim=0)
        self._restrict(graph_module, site.up, site.lora_b, index, dim=1)
        value = site.down.meta["val"]
        site.down.meta["val"] = value.new_empty((*value.shape[:-1], len(directions)))

    def _restrict(
        self, graph_module: fx.GraphModule, reader: fx.Node, matrix: fx.Node, index: torch.Tensor, *, dim: int
    ) -> None:
        full = get_tensor(graph_module, str(matrix.target))
        name = f"{str(matrix.target).removesuffix('.weight')}.active_weight"
        kept = full.detach().index_select(dim, index.to(full.device))
        own_tensor(graph_module, name, nn.Parameter(kept, requires_grad=False))
        with graph_module.graph.inserting_before(reader):
            node = emit_attribute(graph_module, name, origin=self.name, like=matrix)
        reader.replace_input_with(matrix, node)


def open_every_gate(graph_module: fx.GraphModule) -> FreezeStaticGates:
    """The pass that turns a gated graph back into the plain adapters it gates."""
    sites = (site for site in find_sites(graph_module)[0] if site.gate is not None)
    return FreezeStaticGates(tuple((site.name, tuple(range(site.rank))) for site in sites))
