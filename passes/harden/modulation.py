"""Harden: modulations → their deployed form.

    hard    Modulation(x) ─▶ mul      →   HardModulation(x, level) ─▶ unsqueeze ─▶ to(dtype) ─▶ mul
    soft    Modulation(x) ─▶ mul      →   SoftModulation(x) ─▶ mul

The hard form is the dense, masked graph: g is 1 where g(x) ≥ θ and 0 elsewhere. Its level, ln(θ / (1 − θ)), is one
tensor for all sites, so that the share of tokens that take the update changes without a new graph.

Approximate where hard (gates between 0 and 1 become 0 or 1), exact where soft.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from ...errors import PassError
from ...models.modulation import HardModulation, Modulation, SoftModulation
from ..contract import Approximate, Exact, Pass
from ..find.modulations import find_modulated
from ..graph.edit import emit, emit_attribute, emit_module, own_module, own_tensor, shape_of, tensor_value
from ..report import Outcome

aten = torch.ops.aten

#: Name of the buffer that holds the level in a hardened graph.
LEVEL = "modulation_level"


@dataclass(frozen=True)
class HardenModulations(Pass):
    """Replace every modulation by one that takes or leaves the update.

    Attributes:
        level: ln(θ / (1 − θ)).
    """

    level: float

    after: ClassVar[tuple[str, ...]] = ("FreezeRegularization",)
    exactness: ClassVar[Exact | Approximate] = Approximate("gates become 0 or 1")

    def apply(self, graph_module: fx.GraphModule) -> Outcome:
        """Harden each modulation."""
        found = [(item, item.module) for item in find_modulated(graph_module) if isinstance(item.module, Modulation)]
        if not found:
            return Outcome()
        gates = {item.gate for item, _ in found}
        first = next(node for node in graph_module.graph.nodes if node in gates)
        own_tensor(graph_module, LEVEL, torch.tensor(self.level, device=tensor_value(first).device))
        with graph_module.graph.inserting_before(first):
            level = emit_attribute(graph_module, LEVEL, origin=self.name, like=first)
        for item, modulation in found:
            self._harden(graph_module, item.gate, modulation, level)
        graph_module.delete_all_unused_submodules()
        return Outcome(tuple(item.site.name for item, _ in found))

    def ensures(self, graph_module: fx.GraphModule) -> None:
        """No training gate is left."""
        _no_training_gate(graph_module, self.name)

    def _harden(self, graph_module: fx.GraphModule, node: fx.Node, modulation: Modulation, level: fx.Node) -> None:
        graph = graph_module.graph
        name = f"hard_{node.target}"
        own_module(graph_module, name, HardModulation(modulation).eval())
        shape, arguments = shape_of(node)[:-1], (node.args[0], level)
        with graph.inserting_before(node):
            choice = emit_module(graph, name, arguments, shape=shape, dtype=torch.bool, origin=self.name, like=node)
            spread = emit(graph, aten.unsqueeze.default, (choice, -1), origin=self.name, like=node)
            gate = emit(graph, aten.to.dtype, (spread, tensor_value(node).dtype), origin=self.name, like=node)
        node.replace_all_uses_with(gate)
        graph.erase_node(node)


@dataclass(frozen=True)
class KeepModulations(Pass):
    """Replace every modulation by its deployed soft form, the same numbers."""

    after: ClassVar[tuple[str, ...]] = ("FreezeRegularization",)

    def apply(self, graph_module: fx.GraphModule) -> Outcome:
        """Replace each modulation."""
        fired = []
        for item in find_modulated(graph_module):
            if not isinstance(item.module, Modulation):
                continue
            node, name = item.gate, f"soft_{item.gate.target}"
            own_module(graph_module, name, SoftModulation(item.module).eval())
            dtype = tensor_value(node).dtype
            with graph_module.graph.inserting_before(node):
                gate = emit_module(
                    graph_module.graph, name, (node.args[0],), shape=shape_of(node), dtype=dtype, origin=self.name,
                    like=node,
                )  # fmt: skip
            node.replace_all_uses_with(gate)
            graph_module.graph.erase_node(node)
            fired.append(item.site.name)
        graph_module.delete_all_unused_submodules()
        return Outcome(tuple(fired))

    def ensures(self, graph_module: fx.GraphModule) -> None:
        """No training gate is left."""
        _no_training_gate(graph_module, self.name)


def _no_training_gate(graph_module: fx.GraphModule, name: str) -> None:
    for node in graph_module.graph.find_nodes(op="call_module"):
        if isinstance(graph_module.get_submodule(str(node.target)), Modulation):
            raise PassError(f"{name} left the training gate {node.target} in the graph.")
