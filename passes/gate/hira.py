"""Attach: chosen linears → the same linears with a fresh HiRA branch (Huang et al. 2025), still silent: B = 0.

    x ─▶ linear(W0) ─▶ y        x ─▶ linear(W0) ─────────────────────────────────▶ add ─▶ y
                          →     └──▶ [dropout] ─▶ linear(W0 ⊙ B A) ─▶ [mul(s)] ────┘
                                     W0 ⊙ B A = mul(W0, mm(B, A))

Exact: B starts at zero, so the added term is zero. The update is of high rank although A and B are small, so it has
no form of two thin layers: W0 ⊙ B A is a whole weight. HiRA has no scale (s = 1, no node); another s is an option.

Declines linears that already carry an adapter, and those whose rank would be no smaller than the layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import fx, nn

from ...errors import PassError
from ..contract import Pass
from ..find.adapters import find_sites, named_as_adapter
from ..find.hira import find_hira_sites
from ..find.linears import Linear, find_linears, select_targets
from ..find.modulations import update_sites
from ..graph.edit import emit, emit_attribute, emit_module, get_tensor, own_module, own_tensor, shape_of, tensor_value
from ..report import Declined, Outcome

aten = torch.ops.aten


@dataclass(frozen=True)
class AttachHira(Pass):
    """Attach HiRA of our own.

    Attributes:
        rank: r; scale: s, the update's factor; dropout: on the branch's input while training.
        targets: PEFT's target rules (see `select_targets`); exclude: likewise, taken out again.
        layers: only these layer numbers; whole: names of modules that are trained whole and get no adapter.
    """

    rank: int
    dropout: float
    targets: str | tuple[str, ...]
    scale: float = 1.0
    exclude: str | tuple[str, ...] | None = None
    layers: tuple[int, ...] | None = None
    whole: tuple[str, ...] = ()

    def apply(self, graph_module: fx.GraphModule) -> Outcome:
        """Attach a branch to every target."""
        low_rank = find_sites(graph_module)[0]
        taken = {site.path for site in update_sites(graph_module)} | {
            name.rpartition(".hira_A.")[0] for name, _ in graph_module.named_parameters() if ".hira_A." in name
        }
        halves = {node for site in low_rank for node in (site.lora_a, site.lora_b)}
        linears = tuple(
            linear
            for linear in find_linears(graph_module)
            if linear.weight not in halves and not named_as_adapter(linear.weight)
        )
        fired: list[str] = []
        declined: list[Declined] = []
        chosen = select_targets(linears, self.targets, exclude=self.exclude, layers=self.layers)
        repeated = {linear.output for linear in chosen} - set(_first_of_each(chosen))
        # Last first: where one layer feeds another directly, the other's branch must read what the first then answers.
        for linear in reversed(chosen):
            known = linear.path in taken or linear.output in repeated
            reason = "it has an adapter already" if known else self._obstacle(linear)
            if reason is not None:
                declined.append(Declined(linear.path, reason))
                continue
            self._attach(graph_module, linear)
            fired.append(linear.path)
        return Outcome(tuple(reversed(fired)), tuple(reversed(declined)))

    def ensures(self, graph_module: fx.GraphModule) -> None:
        """The attached branches are sites that the finder recognises."""
        if not find_hira_sites(graph_module):
            raise PassError("AttachHira attached branches that are not recognised as HiRA sites.")

    def _attach(self, graph_module: fx.GraphModule, linear: Linear) -> None:
        weight = get_tensor(graph_module, str(linear.weight.target))
        down = nn.Parameter(torch.empty(self.rank, linear.d_in, dtype=weight.dtype, device=weight.device))
        nn.init.kaiming_uniform_(down, a=math.sqrt(5))
        up = nn.Parameter(torch.zeros(linear.d_out, self.rank, dtype=weight.dtype, device=weight.device))
        names = tuple(f"{linear.path}.hira_{half}.default.weight" for half in "AB")
        for name, matrix in zip(names, (down, up), strict=True):
            own_tensor(graph_module, name, matrix)
        graph, like = graph_module.graph, linear.output
        with graph.inserting_after(linear.output):
            cursor = graph.call_function(aten.alias.default, (linear.output,))
        with graph.inserting_before(cursor):
            state = self._dropped(graph_module, linear)
            product = self._product(graph_module, linear, names)
            update = emit(graph, aten.linear.default, (state, product), origin=self.name, like=like)
            if self.scale != 1.0:
                update = emit(graph, aten.mul.Tensor, (update, self.scale), origin=self.name, like=like)
            total = emit(graph, aten.add.Tensor, (linear.output, update), origin=self.name, like=like)
        linear.output.replace_all_uses_with(total, delete_user_cb=lambda user: user not in (total, cursor))
        graph.erase_node(cursor)

    def _product(self, graph_module: fx.GraphModule, linear: Linear, names: tuple[str, ...]) -> fx.Node:
        """W0 ⊙ B A, (d_out, d_in)."""
        graph, like = graph_module.graph, linear.output
        weight = linear.weight
        if linear.transposed:
            weight = emit(graph, aten.t.default, (weight,), origin=self.name, like=like)
        a, b = (emit_attribute(graph_module, name, origin=self.name, like=like) for name in names)
        low_rank = emit(graph, aten.mm.default, (b, a), origin=self.name, like=like)
        return emit(graph, aten.mul.Tensor, (weight, low_rank), origin=self.name, like=like)

    def _dropped(self, graph_module: fx.GraphModule, linear: Linear) -> fx.Node:
        if self.dropout == 0.0:
            return linear.x
        name = f"{linear.path}.hira_dropout.default"
        own_module(graph_module, name, nn.Dropout(self.dropout))
        shape, dtype = shape_of(linear.x), tensor_value(linear.x).dtype
        graph = graph_module.graph
        return emit_module(graph, name, (linear.x,), shape=shape, dtype=dtype, origin=self.name, like=linear.output)

    def _obstacle(self, linear: Linear) -> str | None:
        """Why a linear cannot carry the update."""
        if any(part in self.whole for part in linear.path.split(".")):
            return "it is trained whole, which no update of its weight adds to"
        if self.rank >= min(linear.d_in, linear.d_out):
            return f"rank {self.rank} is no smaller than the {linear.d_out}x{linear.d_in} layer"
        if not isinstance(shape_of(linear.x)[0], torch.SymInt):
            return "the leading axis of its input is not the batch"
        return None


def _first_of_each(linears: tuple[Linear, ...]) -> tuple[fx.Node, ...]:
    """Of layers that are called several times, the first call."""
    return tuple({linear.path: linear.output for linear in reversed(linears)}.values())
