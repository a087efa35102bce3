"""Attach: chosen linears → the same linears with a fresh LoRA branch (Hu et al. 2021), which changes nothing yet (B = 0).

    x ─▶ linear(W0) ─▶ y        x ─▶ linear(W0) ──────────────────────────────────▶ add ─▶ y
                          →     └──▶ [dropout] ─▶ linear(A) ─▶ linear(B) ─▶ mul(s) ──┘

Exact: B starts at zero, so the added term is zero. Declines linears that already carry an adapter, and those whose
rank would be no smaller than the layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import fx, nn

from ...errors import PassError
from ..contract import Pass
from ..find.adapters import find_sites
from ..find.linears import Linear, find_linears, select_targets
from ..graph.edit import emit, emit_attribute, emit_module, get_tensor, own_module, own_tensor, shape_of, tensor_value
from ..report import Declined, Outcome

aten = torch.ops.aten


@dataclass(frozen=True)
class AttachLora(Pass):
    """Attach LoRA of our own.

    Attributes:
        rank: r; alpha: α, the update is scaled by α/r; dropout: on the branch's input while training.
        targets: PEFT's target rules (see `select_targets`).
    """

    rank: int
    alpha: float
    dropout: float
    targets: str | tuple[str, ...]

    def apply(self, graph_module: fx.GraphModule) -> Outcome:
        """Attach a branch to every target."""
        taken = {site.path for site in find_sites(graph_module)[0]}
        fired, declined = [], []
        for linear in select_targets(find_linears(graph_module), self.targets):
            if linear.path in taken:
                declined.append(Declined(linear.path, "it has an adapter already"))
            elif self.rank >= min(linear.d_in, linear.d_out):
                shape = f"{linear.d_out}x{linear.d_in}"
                declined.append(Declined(linear.path, f"rank {self.rank} is no smaller than the {shape} layer"))
            elif not isinstance(shape_of(linear.x)[0], torch.SymInt):
                declined.append(Declined(linear.path, "the leading axis of its input is not the batch"))
            else:
                self._attach(graph_module, linear)
                taken.add(linear.path)
                fired.append(linear.path)
        return Outcome(tuple(fired), tuple(declined))

    def ensures(self, graph_module: fx.GraphModule) -> None:
        """The attached branches are sites that the finder recognises."""
        sites, _ = find_sites(graph_module)
        if not sites:
            raise PassError("AttachLora attached branches that are not recognised as adapter sites.")

    def _attach(self, graph_module: fx.GraphModule, linear: Linear) -> None:
        weight = get_tensor(graph_module, str(linear.weight.target))
        down = nn.Parameter(torch.empty(self.rank, linear.d_in, dtype=weight.dtype, device=weight.device))
        nn.init.kaiming_uniform_(down, a=math.sqrt(5))
        up = nn.Parameter(torch.zeros(linear.d_out, self.rank, dtype=weight.dtype, device=weight.device))
        name_a, name_b = (f"{linear.path}.lora_{half}.default.weight" for half in "AB")
        own_tensor(graph_module, name_a, down)
        own_tensor(graph_module, name_b, up)
        graph, like = graph_module.graph, linear.output
        with graph.inserting_after(linear.output):
            cursor = graph.call_function(aten.alias.default, (linear.output,))
        with graph.inserting_before(cursor):
            state = self._dropped(graph_module, linear)
            matrix_a = emit_attribute(graph_module, name_a, origin=self.name, like=like)
            projected = emit(graph, aten.linear.default, (state, matrix_a), origin=self.name, like=like)
            matrix_b = emit_attribute(graph_module, name_b, origin=self.name, like=like)
            update = emit(graph, aten.linear.default, (projected, matrix_b), origin=self.name, like=like)
            scaled = emit(graph, aten.mul.Tensor, (update, self.alpha / self.rank), origin=self.name, like=like)
            total = emit(graph, aten.add.Tensor, (linear.output, scaled), origin=self.name, like=like)
        linear.output.replace_all_uses_with(total, delete_user_cb=lambda user: user not in (total, cursor))
        graph.erase_node(cursor)

    def _dropped(self, graph_module: fx.GraphModule, linear: Linear) -> fx.Node:
        if self.dropout == 0.0:
            return linear.x
        name = f"{linear.path}.lora_dropout.default"
        own_module(graph_module, name, nn.Dropout(self.dropout))
        shape, dtype = shape_of(linear.x), tensor_value(linear.x).dtype
        graph = graph_module.graph
        return emit_module(graph, name, (linear.x,), shape=shape, dtype=dtype, origin=self.name, like=linear.output)
