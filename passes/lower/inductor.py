"""Run gatefx passes inside Inductor, on the graph that it is about to schedule.

    torch.compile ─▶ Dynamo ─▶ AOTAutograd ─▶ Inductor: [passes of the config] ─▶ gatefx passes ─▶ its own ─▶ code

Passes see Inductor's graph, one for the forward and, in training, one for the backward: ATen operators after its
decompositions, parameters as inputs, nodes with `meta["val"]`. What they keep to there is their contract: exact, or
approximate within what they say.

The digest of a pipeline covers the options and sources of its passes and gatefx's own, so that Inductor's cache on disk
never answers for another version.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass, get_custom_graph_passes

from ...errors import PassError
from ..contract import Pass
from ..graph.edit import own_module, own_tensor
from ..pipeline import Pipeline

HOOK = "post_grad_custom_pre_pass"


@dataclass(frozen=True)
class InductorPass(CustomGraphPass):
    """A pipeline as one of Inductor's custom passes."""

    pipeline: Pipeline

    def __call__(self, graph: fx.Graph) -> None:
        """Rewrite Inductor's graph in place.

        Raises:
            PassError: a graph that belongs to no module.
        """
        owner = graph.owning_module
        if owner is None:
            raise PassError("The graph belongs to no module.", expected="the graph of a GraphModule, as Inductor's are")
        result = self.pipeline(owner).graph_module
        if result is not owner:
            _replace(graph, owner, result)

    def uuid(self) -> str:
        """The pipeline's digest."""
        return self.pipeline.uuid()


def patched(passes: Sequence[Pass], config: Any) -> dict[str, Any]:
    """What to patch Inductor's config with: `passes` after those that stand there.

    Args:
        config: `torch._inductor.config`.

    Raises:
        PassError: a pass stands before one that it must follow.
    """
    return {HOOK: chained(passes, config.post_grad_custom_pre_pass)}


def chained(passes: Sequence[Pass], standing: Any) -> list[Any]:
    """`passes` after those that stand at the hook: none, one or a sequence of them.

    Raises:
        PassError: a pass stands before one that it must follow.
    """
    return [*get_custom_graph_passes(standing), InductorPass(Pipeline(tuple(passes)))]


def _replace(graph: fx.Graph, owner: fx.GraphModule, result: fx.GraphModule) -> None:
    """Give `graph` the nodes of `result`, and its owner the attributes that they read."""
    for node in reversed(graph.nodes):
        graph.erase_node(node)
    for node in result.graph.nodes:
        if node.op == "call_module":
            own_module(owner, str(node.target), result.get_submodule(str(node.target)))
    for name, tensor in (*result.named_parameters(), *result.named_buffers()):
        own_tensor(owner, name, tensor)
    values: dict[fx.Node, fx.Node] = {}
    answer = graph.graph_copy(result.graph, values)
    graph.output(answer).meta = dict(result.graph.output_node().meta)
