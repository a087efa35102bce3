"""Harden: thresholds in training → thresholds that one level moves together.

    UpdateThreshold(M, base, mask) ─▶ add   →   HardUpdateThreshold(M, base, level) ─▶ add

Token i takes the update where r_i ≥ max(0, τ + level): at level 0 the trained thresholds decide alone. The level is
one tensor for all sites, so that the share of tokens that take the update changes without a new graph.

Exact at the level that the gates were trained with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from ...errors import PassError
from ...models.update_threshold import HardUpdateThreshold, UpdateThreshold
from ..contract import Approximate, Exact, Pass
from ..find.thresholds import ThresholdedSite, find_thresholded
from ..graph.edit import emit_attribute, emit_module, own_module, own_tensor, shape_of, tensor_value
from ..report import Outcome

#: Name of the buffer that holds the level in a hardened graph.
LEVEL = "threshold_level"


@dataclass(frozen=True)
class HardenUpdateThresholds(Pass):
    """Replace every threshold in training.

    Attributes:
        level: what is added to every τ.
    """

    level: float = 0.0

    after: ClassVar[tuple[str, ...]] = ("FreezeRegularization",)
    exactness: ClassVar[Exact | Approximate] = Approximate("thresholds move by one level, to meet a budget")

    def apply(self, graph_module: fx.GraphModule) -> Outcome:
        """Harden each threshold."""
        found = [item for item in find_thresholded(graph_module) if isinstance(item.module, UpdateThreshold)]
        if not found:
            return Outcome()
        calls = {item.call for item in found}
        first = next(node for node in graph_module.graph.nodes if node in calls)
        own_tensor(graph_module, LEVEL, torch.tensor(self.level, device=tensor_value(first).device))
        with graph_module.graph.inserting_before(first):
            level = emit_attribute(graph_module, LEVEL, origin=self.name, like=first)
        for item in found:
            self._harden(graph_module, item, level)
        graph_module.delete_all_unused_submodules()
        return Outcome(tuple(dict.fromkeys(item.site.name for item in found)))

    def ensures(self, graph_module: fx.GraphModule) -> None:
        """No training gate is left."""
        for node in graph_module.graph.find_nodes(op="call_module"):
            if isinstance(graph_module.get_submodule(str(node.target)), UpdateThreshold):
                raise PassError(f"{self.name} left the training gate {node.target} in the graph.")

    def _harden(self, graph_module: fx.GraphModule, item: ThresholdedSite, level: fx.Node) -> None:
        node, name = item.call, f"hard_{item.call.target}"
        module = item.module
        if isinstance(module, UpdateThreshold):
            own_module(graph_module, name, HardUpdateThreshold(module).eval())
        with graph_module.graph.inserting_before(node):
            hard = emit_module(
                graph_module.graph, name, (*node.args[:2], level), shape=shape_of(node),
                dtype=tensor_value(node).dtype, origin=self.name, like=node,
            )  # fmt: skip
        node.replace_all_uses_with(hard)
        graph_module.graph.erase_node(node)
