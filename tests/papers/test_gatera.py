"""GateRA in numpy, as the paper prints its equations, against the graphs that gatefx trains and deploys."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from gatefx.models.configs.gatera import GateRA
from gatefx.models.modulation import Modulation
from gatefx.models.modulation_objective import modulation_loss
from gatefx.passes.find.modulations import modulations_of
from gatefx.passes.gate.hira import AttachHira
from gatefx.passes.gate.lora import AttachLora
from gatefx.passes.gate.modulation import InsertModulation
from gatefx.passes.graph.capture import capture
from gatefx.passes.harden.modulation import HardenModulations
from gatefx.passes.pipeline import Pipeline

D_IN, D_OUT, RANK = 9, 7, 3
NEAR = {"rtol": 0, "atol": 1e-10}


class Layer(nn.Module):
    """One linear layer, named as a model's would be."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(D_IN, D_OUT)

    def forward(self, x: Tensor) -> Tensor:
        return self.query(x)


@pytest.fixture
def layer() -> Any:
    """update → (a gated layer's graph, W0, c, A, B, w, b in numpy)."""

    def make(update: str, hidden: int = 0) -> tuple[fx.GraphModule, dict[str, Any]]:
        graph = capture(Layer().double(), {"x": states(2, 4)}).graph_module
        if update == "hira":
            attach: Any = AttachHira(RANK, 0.0, ("query",))
        else:
            attach = AttachLora(RANK, 12.0, 0.0, ("query",))
        config = GateRA(update=update, gate_hidden=hidden)  # type: ignore[arg-type]  # a test's parameter
        graph = InsertModulation(config)(attach(graph).graph_module).graph_module.eval()
        for parameter in graph.parameters():
            nn.init.normal_(parameter)
        named = {name: value.detach().numpy() for name, value in graph.named_parameters()}
        keys = {"query.weight": "w0", "query.bias": "c", "score.weight": "w", "score.bias": "b"}
        keys |= {f"{update}_{half}.default.weight": half for half in "AB"}
        return graph, {short: named[n] for long, short in keys.items() for n in named if n.endswith(long)}

    return make


def states(*shape: int) -> Tensor:
    return torch.randn(*shape, D_IN, dtype=torch.float64)


def sigmoid(z: Any) -> Any:
    return 1 / (1 + np.exp(-z))


def answer(graph: fx.GraphModule, x: Tensor) -> Any:
    return next(iter(graph(x).values())).detach().numpy()


def test_the_gate_modulates_the_hira_update_token_by_token(layer: Any) -> None:
    graph, p = layer("hira")
    x = states(3, 5)
    wanted = np.empty((3, 5, D_OUT))
    for i, j in np.ndindex(3, 5):
        token = x[i, j].numpy()
        g = sigmoid(p["w"][0] @ token + p["b"][0])
        # Figure 2: (G ⊙ (AB) + 1) · W0, every product elementwise.
        wanted[i, j] = ((g * (p["B"] @ p["A"]) + 1) * p["w0"]) @ token + p["c"]

    np.testing.assert_allclose(answer(graph, x), wanted, **NEAR)


def test_the_lora_form_gates_s_b_a(layer: Any) -> None:
    graph, p = layer("lora")
    x = states(3, 5)
    token = x.numpy()
    g = sigmoid(token @ p["w"].T + p["b"])

    wanted = token @ p["w0"].T + p["c"] + g * (12.0 / RANK) * (token @ p["A"].T @ p["B"].T)
    np.testing.assert_allclose(answer(graph, x), wanted, **NEAR)


@pytest.mark.parametrize("update", ["hira", "lora"])
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_deployed_each_token_has_one_of_two_weights(layer: Any, update: str, threshold: float) -> None:
    graph, p = layer(update)
    level = math.log(threshold / (1 - threshold))
    hard = Pipeline((HardenModulations(level),), assumes=("FreezeRegularization",))(graph).graph_module
    x = states(4, 8)
    token = x.numpy()
    delta = p["B"] @ p["A"] * (p["w0"] if update == "hira" else 12.0 / RANK)
    taken = sigmoid(token @ p["w"].T + p["b"]) >= threshold

    wanted = np.where(taken, token @ (p["w0"] + delta).T, token @ p["w0"].T) + p["c"]
    assert 0 < taken.mean() < 1, "the example must vary, or the test shows nothing"
    np.testing.assert_allclose(answer(hard, x), wanted, **NEAR)


def test_the_entropy_term() -> None:
    gate = Modulation(GateRA(entropy_weight=0.2), width=D_IN, budget=None).double()
    nn.init.normal_(gate.score.weight)
    x = states(2, 6)
    gate(x)
    g = sigmoid(x.numpy() @ gate.score.weight.detach().numpy().T + gate.score.bias.detach().numpy())

    wanted = 0.2 * -np.mean(g * np.log(g) + (1 - g) * np.log(1 - g))
    assert float(modulation_loss([gate]).detach()) == pytest.approx(wanted, abs=1e-12)


def test_minimising_the_entropy_term_drives_gates_to_zero_and_one() -> None:
    gate = Modulation(GateRA(entropy_weight=1.0), width=D_IN, budget=None).double()
    nn.init.normal_(gate.score.weight, std=0.1)
    x = states(8, 6)
    optimiser = torch.optim.Adam(gate.parameters(), 0.1)
    start = gate(x)
    for _ in range(200):
        gate(x)
        optimiser.zero_grad()
        torch.autograd.backward(modulation_loss([gate]))
        optimiser.step()
    g = gate(x).detach()

    def doubt(value: Tensor) -> float:
        return float(torch.minimum(value, 1 - value).mean())

    assert doubt(g) < 0.02 < doubt(start.detach())
    assert 0 < float((g > 0.5).double().mean()) < 1, "tokens still differ"


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(-6, 6))
def test_theorem_1_the_gate_masks_the_adapter_s_gradient(seed: int, bias: float) -> None:
    """‖∂L/∂(BA)‖ under the gate is g(x) times the ungated branch's at the same ∂L/∂y, and so at most
    g(x)·‖∂L/∂y‖·‖x‖·max|W0|, for a convex L, token by token."""
    random = torch.Generator().manual_seed(seed)
    w0, low, x, w = (
        torch.randn(*shape, generator=random, dtype=torch.float64)
        for shape in ((D_OUT, D_IN), (D_OUT, D_IN), (5, D_IN), (D_IN,))
    )
    low.requires_grad_(True)
    for token in x:
        g = torch.sigmoid(w @ token + bias)
        y = w0 @ token + g * ((w0 * low) @ token)
        loss = torch.logsumexp(y, 0) - y[0]
        (gated,) = torch.autograd.grad(loss, low, retain_graph=True)
        (upstream,) = torch.autograd.grad(loss, y)
        (ungated,) = torch.autograd.grad((w0 + w0 * low) @ token @ upstream, low)

        assert float(gated.norm()) <= float(g * ungated.norm()) * (1 + 1e-10)
        assert float(gated.norm()) <= float(g * upstream.norm() * token.norm() * w0.abs().max()) * (1 + 1e-10)


def test_theorem_1_holds_in_the_graph_itself(layer: Any) -> None:
    graph, _ = layer("hira")
    (gate,) = modulations_of(graph)
    b = next(value for name, value in graph.named_parameters() if ".hira_B." in name)
    x, direction = states(1, 1), torch.randn(D_OUT, dtype=torch.float64)

    def gradient() -> tuple[float, float]:
        (found,) = torch.autograd.grad((next(iter(graph(x).values())) * direction).sum(), b)
        assert gate.record is not None
        return float(found.norm()), float(gate.record.gate.detach())

    under, g = gradient()
    with torch.no_grad():
        gate.score.bias.fill_(1e4)
    ungated, one = gradient()
    assert one == 1
    assert under == pytest.approx(g * ungated, rel=1e-10)
    with torch.no_grad():
        gate.score.bias.fill_(-1e4)
    assert gradient() == (0, 0)
