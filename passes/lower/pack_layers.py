"""Pack: layers with their adapters → the same over weights in the order in which the native kernels read them.

    x ─▶ gated_linear(W, b, A, B, indices, s)               →  x ─▶ packed_gated_linear(panels, row, A, rows, …, d_out)
    x ─▶ token_gated_linear(W, b, A, B, G, τ, s)            →  x ─▶ packed_token_gated_linear(…)
    x ─▶ routed_linear(W0, W1, b, choice)                   →  x ─▶ packed_routed_linear(…)

Exact: panels, rows and zeros past d_out hold the same numbers (`runtime/ops/packing.py`). Each call saves turning B and
reading the layer's answer again. The packed tensors are the graph's own copies: a weight that changes later does not
change them, so this is the last pass of a graph that runs on one CPU.

Declines weights that are computed in the graph, and types other than float32 and float64, which kernels widen first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from ...runtime.ops import packed_ops  # noqa: F401  # defines torch.ops.gatefx.packed_gated_linear
from ...runtime.ops.packing import direction_rows, panels_of, whole_row
from ..contract import Pass
from ..find.adapters import plain_path
from ..graph.edit import Arguments, emit, emit_attribute, get_tensor, own_tensor
from ..report import Declined, Outcome

gatefx = torch.ops.gatefx
_PACKED = {
    gatefx.gated_linear.default: gatefx.packed_gated_linear.default,
    gatefx.token_gated_linear.default: gatefx.packed_token_gated_linear.default,
    gatefx.routed_linear.default: gatefx.packed_routed_linear.default,
}
_ROUTED = gatefx.routed_linear.default
_TYPES = (torch.float32, torch.float64)


@dataclass(frozen=True)
class PackLayers(Pass):
    """Pack the constant weights of every fused or routed layer."""

    def apply(self, graph_module: fx.GraphModule) -> Outcome:
        """Pack one layer after another."""
        fired, declined = [], []
        for node in list(graph_module.graph.nodes):
            if node.target not in _PACKED:
                continue
            weight = node.args[1]
            name = plain_path(str(weight.target)) if isinstance(weight, fx.Node) else node.name
            reason = _obstacle(graph_module, node)
            if reason is None:
                self._pack(graph_module, node)
                fired.append(name)
            else:
                declined.append(Declined(name, reason))
        graph_module.delete_all_unused_submodules()
        return Outcome(tuple(fired), tuple(declined))

    def _pack(self, graph_module: fx.GraphModule, node: fx.Node) -> None:
        with graph_module.graph.inserting_before(node):
            packing = _Packing(graph_module, node, self.name)
            arguments = packing.routed() if node.target is _ROUTED else packing.adapted()
            packed = emit(graph_module.graph, _PACKED[node.target], arguments, origin=self.name, like=node)  # type: ignore[index]
        node.replace_all_uses_with(packed)
        operands = node.all_input_nodes
        graph_module.graph.erase_node(node)
        for operand in operands:
            if operand.op == "get_attr" and not operand.users:
                graph_module.graph.erase_node(operand)


@dataclass(frozen=True)
class _Packing:
    """The packed operands of one layer, as attributes of the graph."""

    graph_module: fx.GraphModule
    node: fx.Node
    origin: str

    def adapted(self) -> Arguments:
        """Of a layer with an adapter."""
        x, weight, bias, lora_a, lora_b, *gate = self.node.args
        return (
            x, self._attribute(weight, panels_of), self._row(weight, bias), lora_a,
            self._attribute(lora_b, direction_rows), *gate, self._outputs(weight),
        )  # fmt: skip

    def routed(self) -> Arguments:
        """Of two layers, of which each token takes one."""
        x, weight0, weight1, bias, choice = self.node.args
        panels = [self._attribute(weight, panels_of) for weight in (weight0, weight1)]
        return (x, *panels, self._row(weight0, bias), choice, self._outputs(weight0))

    def _tensor(self, constant: fx.node.Argument) -> Tensor:
        return get_tensor(self.graph_module, _constant_name(constant))

    def _outputs(self, weight: fx.node.Argument) -> int:
        return self._tensor(weight).shape[0]

    def _row(self, weight: fx.node.Argument, bias: fx.node.Argument) -> fx.Node:
        if bias is not None:
            return self._attribute(bias, whole_row)
        given = self._tensor(weight)
        return self._attribute(weight, lambda _: whole_row(given.new_zeros(given.shape[0])), kind="bias")

    def _attribute(
        self, constant: fx.node.Argument, pack: Callable[[Tensor], Tensor], *, kind: str = "packed"
    ) -> fx.Node:
        name = f"{_constant_name(constant)}_{kind}"
        own_tensor(self.graph_module, name, pack(self._tensor(constant).detach()))
        return emit_attribute(self.graph_module, name, origin=self.origin, like=self.node)


def _constant_name(constant: fx.node.Argument) -> str:
    return str(constant.target) if isinstance(constant, fx.Node) else ""


def _obstacle(graph_module: fx.GraphModule, node: fx.Node) -> str | None:
    """Why a layer cannot be packed."""
    constants = node.args[1:4] if node.target is _ROUTED else node.args[1:5]
    if any(not isinstance(c, fx.Node) or c.op != "get_attr" for c in constants if c is not None):
        return "its weights are computed in the graph"
    if get_tensor(graph_module, _constant_name(constants[0])).dtype not in _TYPES:
        return "the kernels would widen its type"
    return None
