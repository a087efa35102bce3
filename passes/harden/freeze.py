"""Freeze: a trainable graph → the graph it is in eval mode, with nothing left that train() could switch on.

    dropout_3(h)                      →  h
    attention_dropout_0(q, k, v, m)   →  aten.scaled_dot_product_attention(q, k, v, m)

Exact in eval mode: both modules are the identity of what replaces them there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx, nn

from ...errors import PassError
from ...models.regularization import REGULARIZATION_MODULES, AttentionDropout
from ..contract import Pass
from ..graph.edit import stamp
from ..report import Outcome

aten = torch.ops.aten


@dataclass(frozen=True)
class FreezeRegularization(Pass):
    """Remove dropout from the graph."""

    def apply(self, graph_module: fx.GraphModule) -> Outcome:
        """Replace every dropout module by what it is in eval mode."""
        fired = []
        for node in list(graph_module.graph.find_nodes(op="call_module")):
            module = graph_module.get_submodule(str(node.target))
            if isinstance(module, AttentionDropout):
                self._replace_attention(graph_module.graph, node)
            elif isinstance(module, nn.Dropout):
                node.replace_all_uses_with(node.all_input_nodes[0])
            else:
                continue
            graph_module.graph.erase_node(node)
            fired.append(str(node.target))
        graph_module.delete_all_unused_submodules()
        return Outcome(tuple(fired))

    def ensures(self, graph_module: fx.GraphModule) -> None:
        """No regularisation is left."""
        for node in graph_module.graph.find_nodes(op="call_module"):
            if isinstance(graph_module.get_submodule(str(node.target)), REGULARIZATION_MODULES):
                raise PassError(f"FreezeRegularization left {node.target} in the graph.")

    def _replace_attention(self, graph: fx.Graph, node: fx.Node) -> None:
        query, key, value, mask = node.args
        arguments = (query, key, value) if mask is None else (query, key, value, mask)
        with graph.inserting_before(node):
            attention = graph.call_function(aten.scaled_dot_product_attention.default, arguments, dict(node.kwargs))
        attention.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(stamp(attention, origin=self.name, like=node))
