"""Ranks are chosen once a sequence: the prefill answers what its routers chose, and the decode is told.

    prefill   indices = hard_rank_router(h, mask, level)      the same, and an answer `ranks.hard_rank_router`
    decode    indices = hard_rank_router(h, mask, level)   →  indices = ranks.hard_rank_router, an input (B, S, r)

CCM-LoRA pools the state of a whole prompt; a router that pooled single tokens would choose something else at each.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import fx

from ...models.gates import HardRankRouter
from ...runtime.cache_names import ranks_name
from ..contract import Pass
from ..graph.edit import answers_of, shape_of, stamp, tensor_value
from ..graph.signature import InputSpec, read_axes, signature_of
from ..report import Outcome


@dataclass(frozen=True)
class AnswerRanks(Pass):
    """Answer what every hard router chose."""

    def apply(self, graph_module: fx.GraphModule) -> Outcome:
        """Extend the answers."""
        answers = answers_of(graph_module.graph)
        chosen = {ranks_name(str(node.target)): node for node in _routers(graph_module)}
        new = tuple(name for name in chosen if name not in answers)
        if new:
            answers |= chosen
            graph_module.graph.output_node().args = (answers,)
            signature = signature_of(graph_module)
            graph_module.meta["signature"] = replace(signature, outputs=tuple(answers))
        return Outcome(new)


@dataclass(frozen=True)
class HoldRanks(Pass):
    """Read what hard routers chose instead of asking them."""

    def apply(self, graph_module: fx.GraphModule) -> Outcome:
        """Replace every router by an input."""
        routers = _routers(graph_module)
        for node in routers:
            self._hold(graph_module, node)
        if routers:
            graph_module.graph.eliminate_dead_code(is_impure_node=lambda n: n.op in ("placeholder", "output"))
            graph_module.delete_all_unused_submodules()
        return Outcome(tuple(str(node.target) for node in routers))

    def _hold(self, graph_module: fx.GraphModule, node: fx.Node) -> None:
        graph, name = graph_module.graph, ranks_name(str(node.target))
        with graph.inserting_after(graph.find_nodes(op="placeholder")[-1]):
            made = stamp(graph.placeholder(name.replace(".", "_")), origin=self.name, like=node)
        made.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(made)
        graph.erase_node(node)
        signature = signature_of(graph_module)
        batch = signature.inputs[0].axes[0]
        axes = read_axes(made.meta["val"], {}, {str(shape_of(made)[0]): batch.symbol})
        spec = InputSpec(name, tensor_value(made).dtype, (batch, *axes[1:]))
        graph_module.meta["signature"] = replace(signature, inputs=(*signature.inputs, spec))


def _routers(graph_module: fx.GraphModule) -> list[fx.Node]:
    nodes = graph_module.graph.find_nodes(op="call_module")
    return [node for node in nodes if isinstance(graph_module.get_submodule(str(node.target)), HardRankRouter)]
