"""Dead code: nodes that nothing reads, and the modules and tensors only they used, leave the graph.

Exact: the remaining nodes compute what they computed. Inputs stay, read or not: they are the signature.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from ..contract import Pass
from ..report import Outcome


@dataclass(frozen=True)
class EliminateDeadCode(Pass):
    """Remove what no output needs."""

    def apply(self, graph_module: fx.GraphModule) -> Outcome:
        """Erase dead nodes and report their names."""
        before = {node.name for node in graph_module.graph.nodes}
        graph_module.graph.eliminate_dead_code(is_impure_node=lambda n: n.op in ("placeholder", "output"))
        graph_module.delete_all_unused_submodules()
        left = {node.name for node in graph_module.graph.nodes}
        return Outcome(tuple(sorted(before - left)))
