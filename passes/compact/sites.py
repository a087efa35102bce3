"""Drop: a site whose update is multiplied by zero → its layer alone.

    x ─▶ linear(W0) ───────────────────────────────────────────▶ add ─▶ y
    └──▶ linear(A) ─▶ … ─▶ linear(B) ─▶ mul(s) ─▶ mul(0) ────────┘            →   x ─▶ linear(W0) ─▶ y

Exact: y is W0 x + 0. What only the site used goes with it: A, B, its gates. A rank router that gated the site gates the
remaining ones, by their new numbers.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import fx

from ...models.gates import RankRouter
from ..contract import Pass
from ..find.adapters import find_sites
from ..graph.edit import own_module, shape_of, tensor_value
from ..report import Outcome

aten = torch.ops.aten


@dataclass(frozen=True)
class DropSites(Pass):
    """Take adapter sites out of the graph.

    Attributes:
        sites: their names.
    """

    sites: tuple[str, ...]

    def apply(self, graph_module: fx.GraphModule) -> Outcome:
        """Drop each named site, then what nothing reads any more."""
        fired = []
        for site in find_sites(graph_module)[0]:
            if site.name in self.sites:
                site.add.replace_all_uses_with(site.base)
                graph_module.graph.erase_node(site.add)
                fired.append(site.name)
        if fired:
            graph_module.graph.eliminate_dead_code(is_impure_node=lambda n: n.op in ("placeholder", "output"))
            for node in list(graph_module.graph.find_nodes(op="call_module")):
                module = graph_module.get_submodule(str(node.target))
                if isinstance(module, RankRouter):
                    _renumber(graph_module, node, module)
            graph_module.delete_all_unused_submodules()
        return Outcome(tuple(dict.fromkeys(fired)))


def _renumber(graph_module: fx.GraphModule, node: fx.Node, router: RankRouter) -> None:
    """Let a router answer for the sites alone that still read it."""
    rows = [user for user in node.users if user.target is aten.select.int]
    kept = sorted({int(row.args[2]) for row in rows})  # type: ignore[arg-type]  # (router, axis 1, site)
    if len(kept) == len(router.site_ranks):
        return
    # A shallow copy shares the weights; the caller's router keeps its own numbers.
    restricted = copy.copy(router)
    restricted._buffers = dict(router._buffers)
    index = torch.tensor(kept, device=router.site_ranks.device)
    restricted.site_ranks = router.site_ranks[index]
    restricted.head_of_site = router.head_of_site[index]
    own_module(graph_module, str(node.target), restricted)
    for row in rows:
        row.args = (node, 1, kept.index(int(row.args[2])))  # type: ignore[arg-type]
    batch, _, rank = shape_of(node)
    node.meta["val"] = tensor_value(node).new_empty((batch, len(kept), rank))
