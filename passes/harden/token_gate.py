"""Harden: relaxed gates on tokens → a hard choice at every cut, made once per example.

    token_gate_ℓ(h, mask, …)     n = sum(attention mask)                        once, above the first cut
                              →  priority, counts = hard_token_gate_ℓ(h, mask, n, share, …)
                                 indices, valid   = select_tokens(priority, counts)
                                 gate             = scatter_tokens(to(valid), indices, valid, T, 0.0)

The result is the dense, masked graph: the meaning that compaction must equal. Without a mask n is the length. The
budget, `share`, is one tensor for all cuts, so that it changes without a new graph.

Approximate: gates between 0 and 1 become 0 or 1.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx, nn

from ...errors import PassError
from ...models.token_gate import TokenGate
from ...runtime.ops import token_ops  # noqa: F401  # defines torch.ops.gatefx.select_tokens
from ..contract import Approximate, Exact, Pass
from ..gate.token_scores import token_gates
from ..graph.edit import Arguments, emit, emit_attribute, emit_module, own_module, own_tensor, shape_of, tensor_value
from ..report import Outcome

aten = torch.ops.aten

#: Name of the buffer that holds the budget, the share of tokens kept, in a hardened graph.
SHARE = "token_share"
_READ = 4  # of a training gate's arguments: state, mask, protected, path


@dataclass(frozen=True)
class HardenTokenGates(Pass):
    """Replace every training gate on tokens by a hard choice.

    Attributes:
        share: the budget; harden: makes a cut's hard gate from its trained one.
    """

    share: float
    harden: Callable[[TokenGate], nn.Module]

    after: ClassVar[tuple[str, ...]] = ("FreezeRegularization",)
    exactness: ClassVar[Exact | Approximate] = Approximate("gates become 0 or 1")

    def apply(self, graph_module: fx.GraphModule) -> Outcome:
        """Harden each gate, with one budget and one count of tokens for all."""
        gates = token_gates(graph_module)
        if not gates:
            return Outcome()
        first = gates[0][0]
        own_tensor(graph_module, SHARE, torch.tensor(self.share, device=tensor_value(first).device))
        total = self._count(graph_module.graph, first)
        with graph_module.graph.inserting_before(first):
            share = emit_attribute(graph_module, SHARE, origin=self.name, like=first)
        for node, gate in gates:
            self._harden(graph_module, node, self.harden(gate), (total, share))
        graph_module.delete_all_unused_submodules()
        return Outcome(tuple(str(node.target) for node, _ in gates))

    def ensures(self, graph_module: fx.GraphModule) -> None:
        """No training gate is left."""
        left = token_gates(graph_module)
        if left:
            raise PassError(f"{self.name} left the training gate {left[0][0].target} in the graph.")

    def _count(self, graph: fx.Graph, gate: fx.Node) -> fx.Node:
        """n, (B,): real tokens of each example."""
        state, mask = gate.args[0], gate.args[1]
        with graph.inserting_before(gate):
            if mask is None:
                column = emit(graph, aten.select.int, (state, 2, 0), origin=self.name, like=gate)
                mask = emit(graph, aten.full_like.default, (column, 1), origin=self.name, like=gate)
            return emit(graph, aten.sum.dim_IntList, (mask, [1]), origin=self.name, like=gate)

    def _harden(
        self, graph_module: fx.GraphModule, node: fx.Node, hard: nn.Module, given: tuple[fx.Node, fx.Node]
    ) -> None:
        graph, name, value = graph_module.graph, f"hard_{node.target}", tensor_value(node)
        own_module(graph_module, name, hard.to(value.device).eval())
        state, mask, *rest = node.args[:_READ]  # n says what the training gate knows from the real tokens
        if not isinstance(state, fx.Node):
            raise PassError(f"The gate {node.target} reads no state.")
        precision = torch.promote_types(value.dtype, torch.float32)
        with graph.inserting_before(node):
            both = emit_module(
                graph, name, (state, mask, *given, *rest), shape=shape_of(node), dtype=precision, origin=self.name,
                like=node,
            )  # fmt: skip
            both.meta["val"] = (both.meta["val"], value.new_empty(shape_of(node)[:1], dtype=torch.int64))
            choice = self._emit(graph, torch.ops.gatefx.select_tokens.default, self._parts(graph, both, node), node)
            indices, valid = self._parts(graph, choice, node)
            number = self._emit(graph, aten.to.dtype, (valid, value.dtype), node)
            length = self._emit(graph, aten.sym_size.int, (state, 1), node)
            gate = self._emit(
                graph, torch.ops.gatefx.scatter_tokens.default, (number, indices, valid, length, 0.0), node
            )
        node.replace_all_uses_with(gate)
        graph.erase_node(node)

    def _parts(self, graph: fx.Graph, pair: fx.Node, like: fx.Node) -> tuple[fx.Node, fx.Node]:
        first, second = (self._emit(graph, operator.getitem, (pair, index), like) for index in (0, 1))
        return first, second

    def _emit(self, graph: fx.Graph, target: Callable[..., Any], args: Arguments, like: fx.Node) -> fx.Node:
        return emit(graph, target, args, origin=self.name, like=like)
