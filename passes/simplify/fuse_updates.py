"""Fuse: a layer and the gated update on top of it → one operator that writes their sum once.

    x ─▶ linear(W, b) ─▶ gated_lora(·, x, A, B, indices, s)           →   gated_linear(x, W, b, A, B, indices, s)
    x ─▶ linear(W, b) ─▶ token_gated_lora(·, x, A, B, G, τ, s)        →   token_gated_linear(x, W, b, A, B, G, τ, s)

Exact: the operators are defined as these compositions. A kernel of the whole adds the update while the layer's sums are
still in registers, where the two operators write the answer, read it and write it again.

Declines updates on top of something else (another adapter's sum, a Conv1D), layers without a bias, whose portable form
would add one of zeros, and layers whose answer or input is another one than the update's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from ...runtime.ops import linear_ops  # noqa: F401  # defines torch.ops.gatefx.gated_linear
from ..contract import Pass
from ..graph.edit import stamp
from ..report import Declined, Outcome

aten = torch.ops.aten
_FUSED = {
    torch.ops.gatefx.gated_lora.default: torch.ops.gatefx.gated_linear.default,
    torch.ops.gatefx.token_gated_lora.default: torch.ops.gatefx.token_gated_linear.default,
}
_WITH_BIAS = 3


@dataclass(frozen=True)
class FuseUpdates(Pass):
    """Fuse every gated update whose layer nothing else reads."""

    def apply(self, graph_module: fx.GraphModule) -> Outcome:
        """Fuse one update after another."""
        fired, declined = [], []
        for node in list(graph_module.graph.nodes):
            if node.target not in _FUSED:
                continue
            name, reason = _site_name(node), _obstacle(node)
            if reason is None:
                self._fuse(graph_module.graph, node)
                fired.append(name)
            else:
                declined.append(Declined(name, reason))
        return Outcome(tuple(fired), tuple(declined))

    def _fuse(self, graph: fx.Graph, node: fx.Node) -> None:
        layer, x, *adapter = node.args
        _, weight, bias = layer.args  # type: ignore[union-attr]  # `_obstacle` has seen a linear with a bias
        with graph.inserting_before(node):
            fused = graph.call_function(_FUSED[node.target], (x, weight, bias, *adapter))  # type: ignore[index]
        fused.meta["val"] = node.meta.get("val")
        stamp(fused, origin=self.name, like=node)
        node.replace_all_uses_with(fused)
        graph.erase_node(node)
        graph.erase_node(layer)  # type: ignore[arg-type]


def _site_name(node: fx.Node) -> str:
    """The adapter's path, from the name of its A."""
    lora_a = node.args[2]
    return str(lora_a.target).partition(".lora_A")[0] if isinstance(lora_a, fx.Node) else node.name


def _obstacle(node: fx.Node) -> str | None:
    """Why an update cannot be fused."""
    layer, x = node.args[0], node.args[1]
    if not isinstance(layer, fx.Node) or layer.target is not aten.linear.default:
        return "what it is added to is no linear layer's answer"
    if len(layer.args) < _WITH_BIAS or layer.args[2] is None:
        return "its layer has no bias"
    if layer.args[0] is not x:
        return "its layer reads another input"
    if len(layer.users) > 1:
        return "something besides the adapter reads what the layer answers"
    return None
