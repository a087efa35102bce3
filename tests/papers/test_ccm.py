"""CCM-LoRA in numpy, as the paper prints its equations, against the code; hard-concrete too (Louizos et al. 2018)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from gatefx.models.configs.ccm import CCM
from gatefx.models.gate_functions import (
    hard_concrete_gate,
    hard_concrete_offset,
    hard_concrete_open,
    straight_through,
)
from gatefx.models.gates import RankRouter
from gatefx.models.objectives import gate_loss, histogram_divergence, rank_entropy, temperature_at
from gatefx.models.rank_statistics import elasticity
from gatefx.runtime.ops.schema import gated_lora

ALPHA, RANK, D_IN, D_OUT = 12.0, 6, 9, 7
NEAR = {"rtol": 0, "atol": 1e-10}


@pytest.fixture
def router() -> RankRouter:
    config = CCM(d_router=8, entropy_weight=0.05, penalty=0.3)
    return RankRouter(config, width=D_IN, ranks=(RANK, RANK), head_of_site=(0, 1), budget=2.5).double()


def draws(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape)


def test_equation_4_a_masked_update_is_scaled_and_shut_per_direction() -> None:
    a, b, h = draws(RANK, D_IN), draws(D_OUT, RANK, seed=1), draws(4, D_IN, seed=2)
    mask = (draws(RANK, seed=3) > 0).astype(float)

    update = ALPHA / RANK * b @ np.diag(mask) @ a
    code = (torch.tensor(h) @ torch.tensor(a).T * torch.tensor(mask)) @ torch.tensor(b).T * (ALPHA / RANK)

    np.testing.assert_allclose(code.numpy(), h @ update.T, **NEAR)


def test_equation_8_only_active_directions_are_computed() -> None:
    a, b, h = draws(RANK, D_IN), draws(D_OUT, RANK, seed=1), draws(2, 3, D_IN, seed=2)
    w0 = draws(D_OUT, D_IN, seed=3)
    sets = [[4, 1], [0, 2, 5]]
    indices = torch.full((2, RANK), -1)
    for row, active in enumerate(sets):
        indices[row, : len(active)] = torch.tensor(active)

    wanted = np.stack([h[i] @ (w0 + ALPHA / RANK * b[:, s] @ a[s, :]).T for i, s in enumerate(sets)])
    tensors = [torch.tensor(value) for value in (h @ w0.T, h, a, b)]
    code = gated_lora(*tensors, indices, torch.tensor(ALPHA / RANK, dtype=torch.float64))

    np.testing.assert_allclose(code.numpy(), wanted, **NEAR)


def test_section_2_3_logits_are_an_mlp_of_the_pooled_state(router: RankRouter) -> None:
    state, mask = draws(3, 4, D_IN), np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])

    pooled = (state * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    first, last = ({n: p.detach().numpy() for n, p in m.named_parameters()} for m in (router.trunk, router.heads))
    hidden = pooled @ first["weight"].T + first["bias"]
    hidden = hidden * 0.5 * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
    wanted = (hidden @ last["weight"].T + last["bias"]).reshape(3, 2, RANK)

    np.testing.assert_allclose(router.logits(torch.tensor(state), torch.tensor(mask)).detach().numpy(), wanted, **NEAR)


def test_section_2_4_probabilities_are_a_softmax_at_temperature(router: RankRouter) -> None:
    router.temperature.fill_(0.4)
    state = torch.tensor(draws(3, 4, D_IN))

    logits = router.logits(state, None).detach().numpy() / float(router.temperature)
    wanted = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)

    np.testing.assert_allclose(router.scores(state, None).detach().numpy(), wanted, **NEAR)


def test_section_2_4_the_forward_is_hard_and_the_gradient_is_that_of_p(router: RankRouter) -> None:
    state = torch.tensor(draws(3, 4, D_IN))
    weight = torch.tensor(draws(3, 2, RANK, seed=4))

    gate = router(state)
    assert set(gate.unique().tolist()) <= {0.0, 1.0}
    assert router.record is not None
    np.testing.assert_array_equal(gate.sum(-1).detach(), router.record.count.detach())
    (gate * weight).sum().backward()
    through_gate = {name: p.grad.clone() for name, p in router.named_parameters() if p.grad is not None}
    router.zero_grad()
    (router.scores(state, None) * weight).sum().backward()

    for name, parameter in router.named_parameters():
        torch.testing.assert_close(through_gate[name], parameter.grad, **NEAR)


def test_straight_through_has_one_value_and_the_other_s_gradient() -> None:
    soft = torch.tensor([0.2, 0.7], requires_grad=True)
    hard = torch.tensor([0.0, 1.0])

    out = straight_through(hard, soft)
    assert torch.equal(out, hard)
    (gradient,) = torch.autograd.grad((out * torch.tensor([3.0, 5.0])).sum(), soft)
    assert gradient.tolist() == [3.0, 5.0]


def test_equations_5_to_7_the_budget_term_and_the_entropy(router: RankRouter) -> None:
    router(torch.tensor(draws(5, 4, D_IN)))
    assert router.record is not None
    p, k = router.record.probabilities.detach().numpy(), router.record.count.detach().numpy()

    entropy = -(p * np.log(p)).sum(-1)
    wanted = 0.3 * (k.mean() - 2.5) - 0.05 * entropy.mean()

    np.testing.assert_allclose(rank_entropy(torch.tensor(p)).numpy(), entropy, **NEAR)
    assert float(gate_loss([router]).detach()) == pytest.approx(wanted, abs=1e-7)


def test_equation_13_elasticity_is_a_finite_difference() -> None:
    """Table 10: r = 16, E[k] and score; its rows' elasticities follow from them to the printed digits."""
    table = [(4.3, 74.40), (6.2, 75.00), (7.9, 75.20), (9.8, 75.25)]

    assert [round(value, 3) for value in elasticity(table)] == [0.316, 0.118, 0.026]
    assert elasticity(table[::-1]) == elasticity(table)


@pytest.mark.parametrize("budget", [1.0, 2.5, 6.0])
def test_equation_14_divergence_from_the_target_histogram(budget: float) -> None:
    """π is peaked at the budget; π̂ is the batch's histogram, each count spread by half a rank to have a gradient."""
    counts = np.array([[1.0, 2.0], [2.0, 6.0], [3.0, 2.0]])
    ranks = np.arange(1, RANK + 1)

    spread = np.exp(-((counts.reshape(-1, 1) - ranks) ** 2) / (2 * 0.5**2))
    observed = (spread / spread.sum(-1, keepdims=True)).mean(0)
    target = np.exp(-((ranks - budget) ** 2) / (2 * 1.5**2))
    target /= target.sum()
    wanted = (observed * np.log(observed / target)).sum()

    assert float(histogram_divergence(torch.tensor(counts), budget, RANK)) == pytest.approx(wanted, abs=1e-8)


def test_equation_14_is_least_at_the_target() -> None:
    at = [float(histogram_divergence(torch.full((4, 2), k), 3.0, RANK)) for k in (1.0, 2.0, 3.0, 4.0, 6.0)]

    assert min(at) == at[2]
    assert all(value >= 0 for value in at)


@pytest.mark.parametrize("progress", [0.0, 0.25, 0.5, 0.9, 1.0])
def test_temperatures_follow_appendix_b_2(progress: float) -> None:
    start, least = 1.5, 0.3

    def tau(schedule: Any) -> float:
        return temperature_at(CCM(temperature=start, temperature_min=least, schedule=schedule), progress)

    assert tau("constant") == start
    assert tau("linear") == pytest.approx(max(least, start - (start - least) * progress))
    assert tau("cosine") == pytest.approx(least + 0.5 * (start - least) * (1 + math.cos(math.pi * progress)))


def test_temperatures_stay_at_the_end_and_default_to_the_paper_s() -> None:
    assert temperature_at(CCM(), 0.0) == 1.0
    assert temperature_at(CCM(), 1.0) == pytest.approx(0.2)
    assert temperature_at(CCM(), 7.0) == pytest.approx(0.2)


LOW, HIGH = -0.1, 1.1


def test_hard_concrete_is_louizos_et_al_s() -> None:
    """Equations 10-12: s = σ((log u − log(1−u) + log α)/β), s̄ = s(ζ−γ)+γ, z = min(1, max(0, s̄))."""
    log_alpha, beta = draws(50_000) * 2, 0.6
    torch.manual_seed(5)
    code = hard_concrete_gate(torch.tensor(log_alpha), torch.tensor(beta, dtype=torch.float64), sample=True).numpy()
    torch.manual_seed(5)
    u = torch.rand_like(torch.tensor(log_alpha)).numpy().clip(1e-6, 1 - 1e-6)

    s = 1 / (1 + np.exp(-(np.log(u) - np.log(1 - u) + log_alpha) / beta))
    wanted = np.minimum(1, np.maximum(0, s * (HIGH - LOW) + LOW))

    np.testing.assert_allclose(code, wanted, rtol=0, atol=1e-7)
    opened = 1 / (1 + np.exp(-(log_alpha - beta * math.log(-LOW / HIGH))))
    analytic = hard_concrete_open(torch.tensor(log_alpha), torch.tensor(beta, dtype=torch.float64)).numpy()
    np.testing.assert_allclose(analytic, opened, **NEAR)
    assert (code > 0).mean() == pytest.approx(opened.mean(), abs=0.01)


def test_hard_concrete_at_test_time_is_the_stretched_sigmoid() -> None:
    log_alpha = draws(100)

    wanted = np.clip(1 / (1 + np.exp(-log_alpha)) * (HIGH - LOW) + LOW, 0, 1)

    code = hard_concrete_gate(torch.tensor(log_alpha), torch.tensor(0.3), sample=False)
    np.testing.assert_allclose(code.numpy(), wanted, **NEAR)


def test_the_offset_turns_an_opening_probability_into_a_logit() -> None:
    logit = math.log(0.3 / 0.7) + hard_concrete_offset(0.8)

    assert float(hard_concrete_open(torch.tensor(logit), torch.tensor(0.8))) == pytest.approx(0.3, abs=1e-6)
