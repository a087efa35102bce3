"""The gates' terms of the objective move the router the way they should."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gatefx.models.configs.ccm import CCM
from gatefx.models.gates import RankRouter
from gatefx.models.objectives import gate_loss, mean_count, rank_entropy

STATE = torch.randn(16, 5, 12, generator=torch.Generator().manual_seed(0))


def router_of(budget: float = 2.0, **options: Any) -> RankRouter:
    torch.manual_seed(1)
    config = CCM(**{"d_router": 8, "entropy_weight": 0.0, "penalty": 1.0, **options})
    return RankRouter(config, width=12, ranks=(8, 8), head_of_site=(0, 1), budget=budget)


def trained(router: RankRouter, steps: int = 60) -> float:
    optimiser = torch.optim.Adam(router.parameters(), lr=0.02)
    router.train()
    for _ in range(steps):
        router(STATE)
        optimiser.zero_grad()
        gate_loss([router]).backward()
        optimiser.step()
    router.eval()
    router(STATE)
    assert router.record is not None
    return float(router.record.count.detach().mean())


@pytest.mark.parametrize("gate", ["topk", "hard_concrete", "soft"])
def test_the_budget_term_lowers_the_count(gate: Any) -> None:
    router = router_of(gate=gate, budget=6.0)
    router(STATE)
    assert router.record is not None
    before = float(router.record.count.detach().mean())

    assert trained(router) < before - 0.5


@pytest.mark.parametrize("gate", ["hard_concrete", "soft"])
def test_the_histogram_term_settles_at_the_budget(gate: Any) -> None:
    assert trained(router_of(gate=gate, regularizer="kl", budget=3.0), 150) == pytest.approx(3.0, abs=0.6)


def test_the_entropy_term_spreads_p() -> None:
    router = router_of(regularizer="entropy", entropy_weight=1.0)
    router(STATE)
    assert router.record is not None
    before = float(rank_entropy(router.record.probabilities).detach().mean())
    trained(router)

    assert float(rank_entropy(router.record.probabilities).detach().mean()) > before


def test_the_smoothness_term_is_the_variance_of_k_within_the_batch() -> None:
    plain, smooth = router_of(), router_of(smoothness=0.5)
    for router in (plain, smooth):
        router(STATE)
    assert smooth.record is not None

    variance = smooth.record.count.detach().var(0, unbiased=False).mean()
    assert float((gate_loss([smooth]) - gate_loss([plain])).detach()) == pytest.approx(float(0.5 * variance), abs=1e-5)


def test_several_routers_count_equally() -> None:
    routers = [router_of(), router_of(budget=3.0)]
    for router in routers:
        router(STATE)

    assert float(gate_loss(routers).detach()) == pytest.approx(
        sum(float(gate_loss([router]).detach()) for router in routers) / 2, abs=1e-6
    )
    records = [router.record for router in routers if router.record is not None]
    assert mean_count(records) == pytest.approx(float(torch.cat([r.count.detach() for r in records], 1).mean()))


def test_a_batch_of_one_has_a_loss() -> None:
    router = router_of(smoothness=1.0)
    router(STATE[:1])

    assert gate_loss([router]).isfinite()


def test_an_uncalled_router_has_no_loss() -> None:
    with pytest.raises(Exception, match="call the model"):
        gate_loss([router_of()])
