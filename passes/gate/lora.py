"""Attach: chosen linears → the same linears with a fresh LoRA branch (Hu et al. 2021), still silent: B = 0.

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
from ..find.adapters import find_sites, named_as_adapter
from ..find.linears import Linear, find_linears, select_targets
from ..find.updates import leads_with_batch
from ..graph.edit import emit, emit_attribute, emit_module, get_tensor, own_module, own_tensor, shape_of, tensor_value
from ..report import Declined, Outcome

aten = torch.ops.aten


@dataclass(frozen=True)
class AttachLora(Pass):
    """Attach LoRA of our own.

    Attributes:
        rank: r; alpha: α, the update is scaled by α/r; dropout: on the branch's input while training.
        targets: PEFT's target rules (see `select_targets`).
        exclude: likewise, taken out again; layers: only these layer numbers.
        whole: names of modules that are trained whole and get no adapter.
        overrides: (path, rank, alpha) of layers that differ, as PEFT's rank_pattern and alpha_pattern say it.
    """

    rank: int
    alpha: float
    dropout: float
    targets: str | tuple[str, ...]
    overrides: tuple[tuple[str, int, float], ...] = ()
    exclude: str | tuple[str, ...] | None = None
    layers: tuple[int, ...] | None = None
    whole: tuple[str, ...] = ()

    def apply(self, graph_module: fx.GraphModule) -> Outcome:
        """Attach a branch to every target."""
        sites = find_sites(graph_module)[0]
        # Compacted adapters are no sites any more, but their factors still have the names that a new one would take.
        taken = {site.path for site in sites} | {
            name.rpartition(".lora_A.")[0] for name, _ in graph_module.named_parameters() if ".lora_A." in name
        }
        halves = {node for site in sites for node in (site.lora_a, site.lora_b)}
        linears = tuple(
            linear
            for linear in find_linears(graph_module)
            if linear.weight not in halves and not named_as_adapter(linear.weight)
        )
        sizes = {path: (rank, alpha) for path, rank, alpha in self.overrides}
        chosen: list[tuple[Linear, float]] = []
        declined: list[Declined] = []
        for linear in select_targets(linears, self.targets, exclude=self.exclude, layers=self.layers):
            rank, alpha = sizes.get(linear.path, (self.rank, self.alpha))
            reason = "it has an adapter already" if linear.path in taken else _obstacle(linear, rank)
            if any(part in self.whole for part in linear.path.split(".")):
                reason = "it is trained whole, which no low-rank update adds to"
            if reason is not None:
                declined.append(Declined(linear.path, reason))
                continue
            _own_factors(graph_module, linear, rank)
            taken.add(linear.path)
            chosen.append((linear, alpha / rank))
        # Last first: where one layer feeds another directly, the other's branch must read what the first then answers.
        for linear, scale in reversed(chosen):
            self._attach(graph_module, linear, scale)
        return Outcome(tuple(linear.path for linear, _ in chosen), tuple(declined))

    def ensures(self, graph_module: fx.GraphModule) -> None:
        """The attached branches are sites that the finder recognises."""
        sites, _ = find_sites(graph_module)
        if not sites:
            raise PassError("AttachLora attached branches that are not recognised as adapter sites.")

    def _attach(self, graph_module: fx.GraphModule, linear: Linear, scale: float) -> None:
        name_a, name_b = _factor_names(linear)
        graph, like = graph_module.graph, linear.output
        with graph.inserting_after(linear.output):
            cursor = graph.call_function(aten.alias.default, (linear.output,))
        with graph.inserting_before(cursor):
            state = self._dropped(graph_module, linear)
            matrix_a = emit_attribute(graph_module, name_a, origin=self.name, like=like)
            projected = emit(graph, aten.linear.default, (state, matrix_a), origin=self.name, like=like)
            matrix_b = emit_attribute(graph_module, name_b, origin=self.name, like=like)
            update = emit(graph, aten.linear.default, (projected, matrix_b), origin=self.name, like=like)
            scaled = emit(graph, aten.mul.Tensor, (update, scale), origin=self.name, like=like)
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


def _own_factors(graph_module: fx.GraphModule, linear: Linear, rank: int) -> None:
    """Give the graph A (r, d_in), random, and B (d_out, r), zero."""
    weight = get_tensor(graph_module, str(linear.weight.target))
    down = nn.Parameter(torch.empty(rank, linear.d_in, dtype=weight.dtype, device=weight.device))
    nn.init.kaiming_uniform_(down, a=math.sqrt(5))
    up = nn.Parameter(torch.zeros(linear.d_out, rank, dtype=weight.dtype, device=weight.device))
    for name, matrix in zip(_factor_names(linear), (down, up), strict=True):
        own_tensor(graph_module, name, matrix)


def _factor_names(linear: Linear) -> tuple[str, str]:
    return f"{linear.path}.lora_A.default.weight", f"{linear.path}.lora_B.default.weight"


def _obstacle(linear: Linear, rank: int) -> str | None:
    """Why a linear cannot carry a low-rank update of this rank."""
    if rank >= min(linear.d_in, linear.d_out):
        return f"rank {rank} is no smaller than the {linear.d_out}x{linear.d_in} layer"
    if not leads_with_batch(linear.x):
        return "the leading axis of its input is not the batch"
    return None
