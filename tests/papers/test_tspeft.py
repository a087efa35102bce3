"""TS-PEFT in numpy, as the paper prints its equations, against the graphs that gatefx trains and deploys."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from gatefx.models.configs.tspeft import NLU, TSPEFT
from gatefx.models.threshold_optimizer import consistent_influence, threshold_step
from gatefx.models.update_threshold import UpdateThreshold
from gatefx.passes.compact.updates import SkipUpdates
from gatefx.passes.find.thresholds import thresholds_of
from gatefx.passes.gate.lora import AttachLora
from gatefx.passes.gate.update_threshold import InsertUpdateThresholds
from gatefx.passes.graph.capture import capture
from gatefx.passes.harden.freeze import FreezeRegularization
from gatefx.passes.harden.update_threshold import HardenUpdateThresholds
from gatefx.passes.pipeline import Pipeline

D_IN, D_OUT, RANK, SCALE = 9, 7, 3, 4.0
NEAR = {"rtol": 0, "atol": 1e-10}
WEIGHT = 0.02


class Layer(nn.Module):
    """One linear layer, named as a model's would be."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(D_IN, D_OUT, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.query(x)


@pytest.fixture
def layer() -> Any:
    """τ → (the graph of a layer with that threshold, its gate, W0, A, B in numpy)."""

    def make(tau: float) -> tuple[fx.GraphModule, UpdateThreshold, dict[str, Any]]:
        graph = capture(Layer().double(), {"x": states(2, 4)}).graph_module
        graph = AttachLora(RANK, SCALE * RANK, 0.0, ("query",))(graph).graph_module
        for name, parameter in graph.named_parameters():
            nn.init.normal_(parameter, std=0.3 if ".lora_" in name else 1.0)
        graph = InsertUpdateThresholds(TSPEFT(sparsity_weight=WEIGHT))(graph).graph_module
        gate = thresholds_of(graph)["query"]
        gate.tau.fill_(tau)
        named = {name: value.detach().numpy() for name, value in graph.named_parameters()}
        keys = {"query.weight": "w0", "lora_A.default.weight": "A", "lora_B.default.weight": "B"}
        return graph, gate, {short: named[n] for long, short in keys.items() for n in named if n.endswith(long)}

    return make


def states(*shape: int) -> Tensor:
    return torch.randn(*shape, D_IN, dtype=torch.float64)


def update(p: dict[str, Any], x: Tensor) -> Any:
    return SCALE * x.numpy() @ p["A"].T @ p["B"].T


def ratios(p: dict[str, Any], x: Tensor) -> Any:
    """r of §3.1."""
    return np.linalg.norm(update(p, x), axis=-1) / np.linalg.norm(x.numpy() @ p["w0"].T, axis=-1)


def answer(graph: fx.GraphModule, x: Tensor) -> Tensor:
    found: Tensor = next(iter(graph(x).values()))
    return found


@pytest.mark.parametrize("tau", [0.0, 0.3, 0.6, 1e9])
def test_equations_2_and_3_token_by_token(layer: Any, tau: float) -> None:
    graph, _, p = layer(tau)
    x = states(3, 8)
    wanted = x.numpy() @ p["w0"].T + (ratios(p, x) >= tau)[..., None] * update(p, x)
    masked = Pipeline((FreezeRegularization(), HardenUpdateThresholds()))(graph.eval()).graph_module
    skipping = Pipeline((SkipUpdates(),), assumes=("HardenUpdateThresholds",))(masked).graph_module

    for found in (graph, masked, skipping):
        np.testing.assert_allclose(answer(found, x).detach().numpy(), wanted, **NEAR)


@pytest.mark.parametrize("tau", [0.0, 0.4, 1e9])
def test_equation_9_is_the_gradient_of_the_gate_also_where_it_is_shut(layer: Any, tau: float) -> None:
    graph, gate, p = layer(tau)
    x, direction = states(3, 8), torch.randn(3, 8, D_OUT, dtype=torch.float64)
    torch.autograd.backward((answer(graph.train(), x).tanh() * direction).sum())

    taken = ratios(p, x) >= tau
    h = x.numpy() @ p["w0"].T + taken[..., None] * update(p, x)
    slope = direction.numpy() * (1 - np.tanh(h) ** 2)
    influence = (slope * update(p, x)).sum(-1)
    wanted = np.where((influence >= 0) == taken, influence, 0).sum() + WEIGHT * taken.sum()
    assert gate.gradient is not None
    assert float(gate.gradient) == pytest.approx(wanted, abs=1e-10)


@pytest.mark.parametrize(
    ("influence", "taken", "term"),
    [(0.5, True, 0.5 + WEIGHT), (-0.5, True, WEIGHT), (0.5, False, 0.0), (-0.5, False, -0.5), (0.0, True, WEIGHT)],
)
def test_equations_13_to_15_case_by_case(influence: float, taken: bool, term: float) -> None:
    """§3.3: zero wherever τ is large enough (μ ≥ 0, skipped) or small enough (μ ≤ 0, taken) already."""
    found = consistent_influence(torch.tensor([influence]), torch.tensor([taken]), torch.ones(1))

    assert float(found) + WEIGHT * taken == pytest.approx(term, abs=1e-7)
    assert float(consistent_influence(torch.tensor([influence]), torch.tensor([taken]), torch.zeros(1))) == 0


def test_equations_16_to_20_over_several_steps() -> None:
    config = TSPEFT(step_scale=0.05)
    tau, m, v, count = (torch.tensor(0.0, dtype=torch.float64) for _ in range(4))
    wanted, first, second = 0.0, 0.0, 0.0
    for k, g in enumerate((0.3, -0.02, 1.7, -4.0, -9.0, 0.4, 0.6), start=1):
        alpha = 1 - k / 10
        threshold_step(tau, m, v, count, torch.tensor(g, dtype=torch.float64), alpha * config.step_scale, config)
        first = 0.9 * first + 0.1 * g
        second = 0.98 * second + 0.02 * g * g
        hat = (first / (1 - 0.9**k)) / (np.sqrt(second / (1 - 0.98**k)) + 1e-8)
        wanted = max(0.0, wanted + alpha * 0.05 * hat)
        assert float(tau) == pytest.approx(wanted, abs=1e-12)
    assert float(count) == 7


def test_a_first_step_by_hand() -> None:
    """Adam's first step is the sign of the gradient, whatever its size: τ¹ = α·s."""
    gate = UpdateThreshold(TSPEFT(), budget=None)
    assert float(gate.tau) == 0
    base, change = torch.ones(1, 2, 4), torch.full((1, 2, 4), 0.5, requires_grad=True)
    torch.autograd.backward((base + gate(change, base)).sum())
    # μ = 4 features · 1 · 0.5 at both tokens, both take the update.
    assert float(gate.gradient or 0) == pytest.approx(2 * 2.0 + 2 * 1e-5)
    assert gate.move(4e-5) == 1.0
    assert float(gate.tau) == pytest.approx(4e-5, rel=1e-5)


def test_the_paper_s_values_are_the_defaults() -> None:
    config = TSPEFT()
    assert (config.step_scale, config.momentum, config.decay) == (4e-5, 0.9, 0.98)
    assert TSPEFT(step_scale=1e-4) == NLU
    assert 1e-8 <= config.sparsity_weight <= 1e-3


def test_lambda_alone_makes_updates_rarer(layer: Any) -> None:
    """Eq. 4: with no loss in the answer, only the second term is left, and it raises τ until nobody takes it."""
    graph, gate, _ = layer(0.0)
    graph.train()
    shares = []
    for _ in range(40):
        torch.autograd.backward(answer(graph, states(4, 16)).sum() * 0)
        shares.append(gate.move(0.05))

    assert shares[0] == 1
    assert (shares[-1] or 0) < 0.5


def test_equation_21(layer: Any) -> None:
    graph, gate, p = layer(0.5)
    x = states(4, 16)
    torch.autograd.backward(answer(graph.train(), x).sum())

    assert gate.move(0.0) == pytest.approx(float((ratios(p, x) >= 0.5).mean()))


def test_skipped_tokens_give_the_adapter_no_gradient(layer: Any) -> None:
    graph, _, p = layer(0.5)
    x = states(4, 16)
    taken = torch.from_numpy(ratios(p, x) >= 0.5)
    names = {name: value for name, value in graph.named_parameters() if ".lora_" in name}
    found = torch.autograd.grad((answer(graph.train(), x) ** 2).sum(), list(names.values()))
    kept = torch.autograd.grad((answer(graph, x[taken][None]) ** 2).sum(), list(names.values()))

    assert 0 < float(taken.double().mean()) < 1
    for one, other in zip(found, kept, strict=True):
        torch.testing.assert_close(one, other, **NEAR)


def test_accumulated_micro_batches_are_the_large_batch(layer: Any) -> None:
    graph, gate, _ = layer(0.4)
    graph.train()
    x = states(4, 6)
    torch.autograd.backward((answer(graph, x) ** 2).sum())
    whole = float(gate.gradient)  # type: ignore[arg-type]  # a backward has arrived
    gate.sink.take()
    for part in (x[:1], x[1:]):
        torch.autograd.backward((answer(graph, part) ** 2).sum())

    assert float(gate.gradient) == pytest.approx(whole, rel=1e-12)
