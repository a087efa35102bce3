"""Fuse: a layer and the gated update on top of it → one operator that writes their sum once.

    x ─▶ linear(W, b) ─▶ gated_lora(·, x, A, B, indices, s)           →   gated_linear(x, W, b, A, B, indices, s)
    x ─▶ linear(W, b) ─▶ token_gated_lora(·, x, A, B, G, τ, s)        →   token_gated_linear(x, W, b, A, B, G, τ, s)

Exact: the operators are defined as these compositions. A kernel of the whole adds the update while the layer's sums are
still in registers, where the two operators write the answer, read it and write it again.

Declines updates on top of something else (another adapter's sum, a Conv1D), layers whose answer or input is another
one than the update's, and, unless asked, layers without a bias: they get one of zeros, which costs nothing in a kernel
alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from ...runtime.ops import linear_ops  # noqa: F401  # defines torch.ops.gatefx.gated_linear
from ..contract import Pass
from ..graph.edit import emit_attribute, get_tensor, own_tensor, shape_of, stamp
from ..report import Declined, Outcome

aten = torch.ops.aten
_FUSED = {
    torch.ops.gatefx.gated_lora.default: torch.ops.gatefx.gated_linear.default,
    torch.ops.gatefx.token_gated_lora.default: torch.ops.gatefx.token_gated_linear.default,
}
_WITH_BIAS = 3


@dataclass(frozen=True)
class FuseUpdates(Pass):
    """Fuse every gated update whose layer nothing else reads.

    Attributes:
        zero_bias: also layers without a bias; for graphs that the native kernels will run.
    """

    zero_bias: bool = False

    def apply(self, graph_module: fx.GraphModule) -> Outcome:
        """Fuse one update after another."""
        fired, declined = [], []
        for node in list(graph_module.graph.nodes):
            if node.target not in _FUSED:
                continue
            name, reason = _site_name(node), self._obstacle(node)
            if reason is None:
                self._fuse(graph_module, node)
                fired.append(name)
            else:
                declined.append(Declined(name, reason))
        return Outcome(tuple(fired), tuple(declined))

    def _fuse(self, graph_module: fx.GraphModule, node: fx.Node) -> None:
        graph = graph_module.graph
        layer, x, *adapter = node.args
        _, weight, *given = layer.args  # type: ignore[union-attr]  # `_obstacle` has seen a linear
        with graph.inserting_before(node):
            bias = given[0] if given and given[0] is not None else self._zeros(graph_module, weight, node)  # type: ignore[arg-type]
            fused = graph.call_function(_FUSED[node.target], (x, weight, bias, *adapter))  # type: ignore[index]
        fused.meta["val"] = node.meta.get("val")
        stamp(fused, origin=self.name, like=node)
        node.replace_all_uses_with(fused)
        graph.erase_node(node)
        graph.erase_node(layer)  # type: ignore[arg-type]

    def _zeros(self, graph_module: fx.GraphModule, weight: fx.Node, node: fx.Node) -> fx.Node:
        """A bias of zeros for a layer that has none."""
        name = f"{weight.target}_zero_bias"
        own_tensor(graph_module, name, get_tensor(graph_module, str(weight.target)).new_zeros(shape_of(weight)[0]))
        return emit_attribute(graph_module, name, origin=self.name, like=node)

    def _obstacle(self, node: fx.Node) -> str | None:
        """Why an update cannot be fused."""
        layer, x = node.args[0], node.args[1]
        if not isinstance(layer, fx.Node) or layer.target is not aten.linear.default:
            return "what it is added to is no linear layer's answer"
        if not self._biased(layer):
            return "its layer has no bias"
        if layer.args[0] is not x:
            return "its layer reads another input"
        if len(layer.users) > 1:
            return "something besides the adapter reads what the layer answers"
        return None

    def _biased(self, layer: fx.Node) -> bool:
        if len(layer.args) == _WITH_BIAS and layer.args[2] is not None:
            return True
        weight = layer.args[1]
        return self.zero_bias and isinstance(weight, fx.Node) and weight.op == "get_attr"


def _site_name(node: fx.Node) -> str:
    """The adapter's path, from the name of its A."""
    lora_a = node.args[2]
    return str(lora_a.target).partition(".lora_A")[0] if isinstance(lora_a, fx.Node) else node.name
