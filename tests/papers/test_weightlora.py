"""WeightLoRA's equations, step by step, against the paper's own words in plain numpy and torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gatefx
from gatefx.models.adapter_weight import AdapterWeight
from gatefx.models.configs.weightlora import WeightLoRA
from gatefx.models.iterative_thresholding import kept_overlap, threshold_step
from gatefx.models.tiny import tiny, tiny_inputs
from gatefx.passes.find.adapter_weights import weights_by_name
from gatefx.passes.find.adapters import find_sites
from gatefx.passes.gated import GatedModel
from gatefx.passes.graph.edit import get_tensor
from gatefx.passes.methods.weightlora_training import SelectionSchedule, adapter_parameters

LABELS = torch.tensor([0, 1, 2, 0])
DATA = [tiny_inputs("bert", batch=4, tokens=5 + 2 * index, seed=index) for index in range(3)]


def prepared(plus: bool = False, budget: float | None = None, **options: Any) -> GatedModel:
    config = WeightLoRA(plus=plus, rank=4, target_modules=("query", "value"), **options)
    return gatefx.prepare(tiny("bert", num_labels=3), config, budget, example_inputs=DATA[0]).train()


def optimiser_of(gated: GatedModel) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in gated.parameters() if p.requires_grad], 1e-2)


def train(gated: GatedModel, optimiser: torch.optim.Optimizer, schedule: Any, steps: int, first: int = 0) -> None:
    for index in range(first, first + steps):
        optimiser.zero_grad()
        gated(**DATA[index % 3], labels=LABELS)["loss"].backward()
        optimiser.step()
        schedule.step()


def scheduled(gated: GatedModel, optimiser: torch.optim.Optimizer, steps: int = 20) -> SelectionSchedule:
    schedule = gated.schedule(steps, optimiser)
    assert isinstance(schedule, SelectionSchedule)
    return schedule


# Appendix B: ω̃ = ω − η g, ω ← H_K(ω̃).


def stoiht(omega: np.ndarray, gradient: np.ndarray, kept: int, rate: float) -> np.ndarray:
    """The step as the appendix words it, η being `rate` over the gradient's root mean square."""
    moved = omega - rate / np.sqrt(np.mean(gradient**2)) * gradient
    top = sorted(range(len(moved)), key=lambda index: -abs(moved[index]))[:kept]
    return np.array([value if index in top else 0.0 for index, value in enumerate(moved)])


@given(st.integers(1, 10), st.data())
@settings(max_examples=40, deadline=None)
def test_the_step_is_stoiht(count: int, data: st.DataObject) -> None:
    kept, seed = data.draw(st.integers(1, count)), data.draw(st.integers(0, 1000))
    random = np.random.default_rng(seed)
    omega, gradient = random.normal(size=count), random.normal(size=count)
    weights = [AdapterWeight().double() for _ in range(count)]
    for weight, value, slope in zip(weights, omega, gradient, strict=True):
        weight.omega.fill_(value)
        (weight() * slope).backward()
    threshold_step(weights, kept, 0.3)
    found = np.array([float(weight.omega) for weight in weights])

    np.testing.assert_allclose(found, stoiht(omega, gradient, kept, 0.3), rtol=1e-5, atol=1e-6)
    assert np.count_nonzero(found) <= kept, "‖ω‖₀ ≤ K"


def test_a_dropped_adapter_may_come_back() -> None:
    weights = [AdapterWeight() for _ in range(3)]
    for slopes, alive in (((-1.0, -0.9, 1.0), [0, 1]), ((0.0, 2.0, -2.0), [0, 2])):
        for weight, slope in zip(weights, slopes, strict=True):
            (weight() * slope).backward()
        threshold_step(weights, 2, 1.5)
        assert [index for index, weight in enumerate(weights) if float(weight.omega) != 0] == alive


# Equation 1: W = W0 + ω·s·B A, and ∂ℓ/∂ω through it.


def test_the_gradient_of_omega_is_that_of_the_loss() -> None:
    gated = prepared()
    for name, parameter in gated.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.3)
    gated.double()
    weights = weights_by_name(gated.graph_module)
    for weight in weights.values():
        weight.omega.fill_(0.0)
    gated.eval()  # no dropout; the weights alone in training
    for weight in weights.values():
        weight.train()
    gated(**DATA[0], labels=LABELS)["loss"].backward()

    for weight in weights.values():
        taken, step = float(weight.take_gradient()), 1e-5
        losses = []
        for sign in (1, -1):
            weight.omega.fill_(sign * step)
            with torch.no_grad():
                losses.append(float(gated(**DATA[0], labels=LABELS)["loss"]))
        weight.omega.fill_(0.0)
        assert taken == pytest.approx((losses[0] - losses[1]) / (2 * step), rel=1e-5, abs=1e-8)


# §2: T ≤ 0.5 % of the run, K = n/2.


@pytest.mark.parametrize(("steps", "warmup"), [(100, 5), (1000, 5), (10_000, 50), (6, 3), (2, 2)])
def test_the_warm_up_is_half_a_percent_of_the_run(steps: int, warmup: int) -> None:
    assert WeightLoRA().warmup_steps(steps) == warmup


def test_half_of_the_adapters_stay_unless_said_otherwise() -> None:
    assert [prepared(budget=budget).budget for budget in (None, 3, 0.25)] == [2, 3, 1]
    assert prepared(plus=True).budget == 2
    with pytest.raises(gatefx.GatefxError, match="keeps half"):
        prepared(plus=True, budget=3)


# §2, phase 2: kept adapters start afresh, the others are discarded; §2.2: at twice the rank.


@pytest.mark.parametrize("plus", [False, True])
def test_after_the_warm_up_kept_adapters_start_afresh(plus: bool) -> None:
    gated = prepared(plus)
    optimiser = optimiser_of(gated)
    schedule = scheduled(gated, optimiser)
    train(gated, optimiser, schedule, 4)
    assert schedule.selection is None
    assert schedule.history[0].active == 4, "B = 0: no gradient yet, so no choice"
    assert [row.active for row in schedule.history[1:]] == [2, 2, 2]
    trained = {site.name: get_tensor(gated.graph_module, str(site.lora_a.target)).clone() for site in sites(gated)}
    train(gated, optimiser, schedule, 1, first=4)
    chosen = schedule.selection
    assert chosen is not None

    last = schedule.history[-1].omega
    assert set(chosen.kept) == set(sorted(last, key=lambda name: -abs(last[name]))[:2])
    assert set(chosen.kept) | set(chosen.dropped) == set(last)
    for site in sites(gated):
        lora_a, lora_b = (get_tensor(gated.graph_module, str(node.target)) for node in (site.lora_a, site.lora_b))
        assert torch.count_nonzero(lora_b) == 0
        kept = site.name in chosen.kept
        assert float(weights_by_name(gated.graph_module)[site.name].omega) == float(kept)
        assert lora_a.requires_grad == lora_b.requires_grad == kept
        assert site.rank == (8 if plus and kept else 4)
        if not plus:
            near = torch.allclose(lora_a, trained[site.name], rtol=0, atol=0.02)  # one step of the optimiser
            assert near != kept
    train(gated, optimiser, schedule, 3, first=5)
    assert len(schedule.history) == 5, "after the choice ω does not move"
    active = {s.name for s in sites(gated) if torch.count_nonzero(get_tensor(gated.graph_module, str(s.lora_b.target)))}
    assert active == set(chosen.kept)


def test_doubled_ranks_own_as_many_parameters_as_lora() -> None:
    gated = prepared(plus=True)
    optimiser = optimiser_of(gated)
    schedule = scheduled(gated, optimiser)
    train(gated, optimiser, schedule, 5)
    assert schedule.selection is not None

    assert schedule.selection.parameters_left == schedule.selection.parameters == 4 * 4 * (32 + 32)
    held = {id(p) for group in optimiser.param_groups for p in group["params"]}
    own = adapter_parameters(gated.graph_module, schedule.selection.kept)
    assert all(id(parameter) in held for parameter in own)
    trainable = {id(parameter) for parameter in gated.parameters() if parameter.requires_grad}
    assert held == trainable


@pytest.mark.slow  # tests/passes/methods/test_weightlora_training.py compares two seeds
def test_figure_5_compares_what_seeds_kept() -> None:
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        gated = prepared()
        optimiser = optimiser_of(gated)
        schedule = scheduled(gated, optimiser)
        train(gated, optimiser, schedule, 5)
        assert schedule.selection is not None
        found.append(schedule.selection.kept)

    assert kept_overlap(found[0], found[1]) == 1.0
    assert kept_overlap(found[0], found[2]) in (0.0, 1 / 3, 1.0)


def sites(gated: GatedModel) -> tuple[Any, ...]:
    return find_sites(gated.graph_module)[0]
