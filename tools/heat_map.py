"""Which tokens of a sentence a model keeps after each cut, and which take the update, layer by layer.

Read from the masked reference graph of a deployed model: it decides as the compacted one does, on all tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ..errors import SiteError
from ..models.hard_token_gate import HardTokenGate
from ..models.update_threshold import HardUpdateThreshold
from ..passes.deployed import DeployedModel
from ..passes.find.layer_names import layer_of
from .heat_page import HeatRow

_TOKENS = 2  # axes of a gate per token, (B, T)


def heat_rows(model: DeployedModel, inputs: Mapping[str, Tensor]) -> tuple[HeatRow, ...]:
    """The rows of one sentence, inputs of batch 1: cuts first, then layers.

    Raises:
        SiteError: no gate of the model decides token by token.
    """
    graph = model.reference_graph
    seen = _Recorder(graph).record(model.arrange(inputs))
    rows = [*_cuts(graph, seen), *_updates(model, seen)]
    if not rows:
        raise SiteError(
            "No gate of this model decides token by token.",
            given=f"methods {', '.join(model.methods)}",
            expected="gates of masklora, tspeft or gatera that keep less than everything",
        )
    return tuple(rows)


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps what its gates on tokens answer, by node."""

    def record(self, arguments: Sequence[Tensor]) -> dict[fx.Node, Any]:
        self.seen: dict[fx.Node, Any] = {}
        with torch.no_grad():
            self.run(*arguments)
        return self.seen

    def run_node(self, n: fx.Node) -> Any:
        """Run a node, and keep its answer where it is a gate's."""
        value = super().run_node(n)
        if n.op == "call_module" or n.target is torch.ops.gatefx.scatter_tokens.default:
            self.seen[n] = value
        return value


def _cuts(graph: fx.GraphModule, seen: Mapping[fx.Node, Any]) -> list[HeatRow]:
    """A row per cut: the product of the gates so far, since a dropped token stays dropped."""
    rows, alive = [], None
    gates = [node for node in seen if _is(graph, node, HardTokenGate)]
    scattered = [node for node in seen if node.op == "call_function"]
    for gate, kept in zip(gates, scattered, strict=False):
        alive = seen[kept] if alive is None else alive * seen[kept]
        layer = str(gate.target).rpartition("_")[2]
        rows.append(HeatRow(f"kept after layer {layer}", "kept", tuple(alive[0].tolist())))
    return rows


def _updates(model: DeployedModel, seen: Mapping[fx.Node, Any]) -> list[HeatRow]:
    """A row per method and layer: the mean over its gated sites."""
    answers = {str(node.target): _taken(model.reference_graph, node, value) for node, value in seen.items()}
    rows = []
    for name in ("tspeft", "gatera"):
        layers: dict[str, list[Tensor]] = {}
        for site, gate in _gates_of(model, name).items():
            taken = answers.get(gate)
            if taken is not None:
                layers.setdefault(layer_of(site) or site, []).append(taken)
        for layer, decided in layers.items():
            mean = torch.stack(decided).float().mean(0)
            rows.append(HeatRow(f"{name}: {layer.rpartition('.')[2]}", "updated", tuple(mean.tolist())))
    return rows


def _gates_of(model: DeployedModel, name: str) -> Mapping[str, str]:
    from ..passes.methods.gatera_deploy import ModulationDecision
    from ..passes.methods.tspeft_deploy import ThresholdDecision

    decision = model.decisions.get(name)
    return decision.gates if isinstance(decision, (ModulationDecision, ThresholdDecision)) else {}


def _taken(graph: fx.GraphModule, node: fx.Node, value: Any) -> Tensor | None:
    """(T,) in [0, 1] of the first example; None where the node answers for no tokens."""
    if node.op != "call_module" or not isinstance(value, Tensor):
        return None
    if _is(graph, node, HardUpdateThreshold):  # answers the update itself, zero where it is skipped
        value = value.ne(0).any(-1)
    return value[0] if value.dim() == _TOKENS else None


def _is(graph: fx.GraphModule, node: fx.Node, kind: type) -> bool:
    return node.op == "call_module" and isinstance(graph.get_submodule(str(node.target)), kind)
