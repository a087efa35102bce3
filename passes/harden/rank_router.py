"""Harden: soft or straight-through rank gates → hard decisions with a calibrated level, made once per example.

    router(x₁, mask) ─▶ select ─▶ mul        hard_router(x₁, mask) ─▶ RankMask ─▶ select ─▶ mul
                                        →    indices (B, S, r): active directions first, then −1

The result is the dense, masked graph: the meaning that every compacted form must equal. Approximate: k is rounded up
to a bucket, the level is calibrated, and gates between 0 and 1 become 0 or 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from ...errors import PassError
from ...models.gates import HardRankRouter, RankMask, RankRouter
from ..contract import Approximate, Exact, Pass
from ..graph.edit import emit_attribute, emit_module, own_module, own_tensor, shape_of, tensor_value
from ..report import Outcome

#: Name of the buffer that holds the level in a hardened graph.
LEVEL = "rank_level"


@dataclass(frozen=True)
class HardenRankRouters(Pass):
    """Replace every rank router by its hardened form.

    Attributes:
        level: log(1 − c), a rank count or a threshold; rule: which of them it is ("coverage", "fixed",
            "threshold"); buckets: rank counts to which k is rounded up.
    """

    level: float
    rule: str
    buckets: tuple[int, ...]

    after: ClassVar[tuple[str, ...]] = ("FreezeRegularization",)
    exactness: ClassVar[Exact | Approximate] = Approximate("gates become 0 or 1, k is rounded up to a bucket")

    def apply(self, graph_module: fx.GraphModule) -> Outcome:
        """Harden each router node."""
        fired = []
        level: fx.Node | None = None
        for node in list(graph_module.graph.find_nodes(op="call_module")):
            router = graph_module.get_submodule(str(node.target))
            if isinstance(router, RankRouter):
                level = level or self._level(graph_module, node)
                self._harden(graph_module, node, router, level)
                fired.append(str(node.target))
        graph_module.delete_all_unused_submodules()
        return Outcome(tuple(fired))

    def ensures(self, graph_module: fx.GraphModule) -> None:
        """No training gate is left."""
        for node in graph_module.graph.find_nodes(op="call_module"):
            if isinstance(graph_module.get_submodule(str(node.target)), RankRouter):
                raise PassError(f"HardenRankRouters left the training gate {node.target} in the graph.")

    def _level(self, graph_module: fx.GraphModule, node: fx.Node) -> fx.Node:
        """The level, one tensor for all routers."""
        own_tensor(graph_module, LEVEL, torch.tensor(self.level, device=tensor_value(node).device))
        with graph_module.graph.inserting_before(node):
            return emit_attribute(graph_module, LEVEL, origin=self.name, like=node)

    def _harden(self, graph_module: fx.GraphModule, node: fx.Node, router: RankRouter, level: fx.Node) -> None:
        largest = int(router.site_ranks.max())
        buckets = (*(b for b in self.buckets if b < largest), largest)
        hard = HardRankRouter(router, rule=self.rule, buckets=buckets).to(router.site_ranks.device).eval()
        name, mask_name = f"hard_{node.target}", f"mask_of_{node.target}"
        own_module(graph_module, name, hard)
        dtype = tensor_value(node).dtype
        own_module(graph_module, mask_name, RankMask(dtype))
        graph, shape = graph_module.graph, shape_of(node)
        with graph.inserting_before(node):
            arguments = (node.args[0], node.args[1] if len(node.args) > 1 else None, level)
            indices = emit_module(graph, name, arguments, shape=shape, dtype=torch.int64, origin=self.name, like=node)
            mask = emit_module(graph, mask_name, (indices,), shape=shape, dtype=dtype, origin=self.name, like=node)
        node.replace_all_uses_with(mask)
        graph.erase_node(node)
