"""Fixed token gates for tests, and the runs that prove what shut tokens may not do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from gatefx.config import AdapterConfig
from gatefx.models.modulation import SoftModulation
from gatefx.passes.gate.token_gate import TOKEN_GATE, InsertTokenGates

aten = torch.ops.aten


class FixedGate(SoftModulation):
    """A gate (B, T) that a test sets; open where it sets none."""

    def __init__(self, config: AdapterConfig, *, layer: int, width: int, kept: tuple[int, ...]) -> None:
        nn.Module.__init__(self)
        self.made_with = (config, layer, width, kept)
        self.gate: Tensor | None = None
        self.mask: Tensor | None = None

    def forward(self, state: Tensor, mask: Tensor | None = None) -> Tensor:
        """The gate as it was set; remembers the mask it got."""
        self.mask = mask
        return state.new_ones(state.shape[:2]) if self.gate is None else self.gate.to(state.dtype)


def masked_states(graph: fx.GraphModule) -> list[fx.Node]:
    """The products of states and gates."""
    gates = [n for n in graph.graph.find_nodes(op="call_module") if str(n.target).startswith(TOKEN_GATE)]
    states = [gate.args[0] for gate in gates]
    products = graph.graph.find_nodes(op="call_function", target=aten.mul.Tensor)
    return [n for n in products if n.args[0] in states and n.meta["origin"] == "InsertTokenGates"]


class Spoiled(fx.Interpreter):
    """Runs a graph whose masked states hold rubbish at shut tokens."""

    def __init__(self, graph: fx.GraphModule, keep: Tensor) -> None:
        super().__init__(graph)
        self.keep = keep
        self.spoiled = set(masked_states(graph))
        assert self.spoiled

    def run_node(self, n: fx.Node) -> Any:
        """The node's value, spoiled where it is a masked state."""
        value = super().run_node(n)
        if n in self.spoiled:
            value = torch.where(self.keep[..., None].bool(), value, 50 * torch.randn_like(value))
        return value


@dataclass(frozen=True)
class TokenGates:
    """What tests do with fixed gates."""

    module: type[FixedGate] = FixedGate

    def insert(self, *cuts: int) -> InsertTokenGates:
        """The pass with fixed gates."""
        return InsertTokenGates(AdapterConfig(), cuts, FixedGate)

    def set(self, graph: fx.GraphModule, gate: Tensor | None, *cuts: int) -> None:
        """Set the gates of the named cuts, or of all."""
        for name, module in graph.named_modules():
            if isinstance(module, FixedGate) and (not cuts or int(name.rpartition("_")[2]) in cuts):
                module.gate = gate

    def spoiled(self, graph: fx.GraphModule, keep: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """The logits when every masked state holds rubbish where `keep` (B, T) is false."""
        answer: Tensor = Spoiled(graph, keep).run(*inputs.values())["logits"]
        return answer


@pytest.fixture
def token_gates() -> TokenGates:
    return TokenGates()
