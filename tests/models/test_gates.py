"""Routers as modules: shapes, site ranks, budgets, dual variables, copies."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch

from gatefx.models.configs.ccm import CCM
from gatefx.models.gates import HardRankRouter, RankMask, RankRouter

STATE = torch.randn(6, 5, 12, generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[1] * n + [0] * (5 - n) for n in (5, 1, 2, 3, 4, 5)])


def router_of(budget: float = 2.0, ranks: tuple[int, ...] = (8, 3), heads: Any = (0, 1), **options: Any) -> RankRouter:
    torch.manual_seed(1)
    config = CCM(**{"d_router": 8, **options})
    return RankRouter(config, width=12, ranks=ranks, head_of_site=heads, budget=budget)


GATES = ["topk", "hard_concrete", "soft"]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("gate", GATES)
def test_gates_are_within_bounds_and_zero_beyond_a_site_s_rank(gate: Any, training: bool) -> None:
    router = router_of(gate=gate).train(training)
    out = router(STATE, MASK)

    assert out.shape == (6, 2, 8)
    assert bool(((out >= 0) & (out <= 1)).all())
    assert not out[:, 1, 3:].any()
    assert router.record is not None
    assert router.record.count.shape == (6, 2)
    assert not router.record.probabilities[:, 1, 3:].any()
    if gate == "topk":
        torch.testing.assert_close(router.record.probabilities.sum(-1), torch.ones(6, 2))
        assert set(out.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("gate", GATES)
def test_only_hard_concrete_samples_and_only_in_training(gate: Any) -> None:
    router = router_of(gate=gate)

    def draws() -> bool:
        return not torch.equal(router(STATE, MASK), router(STATE, MASK))

    router.train()
    assert draws() == (gate == "hard_concrete")
    router.eval()
    assert not draws()


def test_a_fixed_k_gives_every_example_the_budget() -> None:
    out = router_of(k="fixed", budget=4.0)(STATE, MASK)

    assert out.sum(-1).unique(dim=0).tolist() == [[4.0, 3.0]]


def test_k_min_is_kept_within_the_site_s_rank() -> None:
    router = router_of(k_min=5)
    router.level.fill_(-0.01)

    assert router(STATE, MASK).sum(-1).unique(dim=0).tolist() == [[5.0, 3.0]]


def test_shared_heads_decide_alike_where_ranks_are_alike() -> None:
    out = router_of(ranks=(8, 8, 8), heads=(0, 1, 0))(STATE, MASK)

    assert torch.equal(out[:, 0], out[:, 2])
    assert not torch.equal(out[:, 0], out[:, 1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_routers_answer_in_the_state_s_dtype(dtype: torch.dtype) -> None:
    for gate in GATES:
        assert router_of(gate=gate).to(dtype)(STATE.to(dtype), MASK).dtype == dtype


def test_dual_variables_move_towards_the_budget() -> None:
    router = router_of(penalty=0.1, penalty_rate=0.05)
    level = float(router.level)

    router.observe(mean_rank=4.0, level=level / 2)

    assert float(router.penalty) == pytest.approx(0.1 + 0.05 * 2.0)
    assert float(router.level) == pytest.approx(level * (1 - 0.25 / 2))
    assert router.coverage == pytest.approx(1 - math.exp(float(router.level)))
    assert int(router.updates) == 1
    assert float(router.running_rank) == pytest.approx(2.0 + 0.1 * 2.0)
    for _ in range(100):
        router.observe(mean_rank=1.0, level=level)
    assert float(router.penalty) == 0.0, "λ never turns negative"


@pytest.mark.parametrize("options", [{"k": "fixed"}, {"gate": "soft"}, {"gate": "hard_concrete"}])
def test_coverage_moves_only_where_it_decides(options: Any) -> None:
    router = router_of(**options)
    before = float(router.level)
    router.observe(mean_rank=4.0, level=-2.0)

    assert float(router.level) == before


def test_peaked_probabilities_still_get_as_many_ranks_as_their_level_says() -> None:
    router = router_of(ranks=(8,), heads=(0,)).requires_grad_(False)
    router.heads.weight.zero_()
    router.heads.bias.copy_(torch.arange(8) * -10.0)  # what the first k leave uncovered: e⁻¹⁰, e⁻²⁰, e⁻³⁰, …
    for count in (1, 2, 3, 4):
        router.level.fill_(-5.0 - 10.0 * (count - 1))
        assert router(STATE, MASK)[:, 0].sum(-1).unique().tolist() == [count]
    assert router.level.exp() < torch.finfo(torch.float32).eps


def test_a_budget_of_every_rank_starts_finite() -> None:
    for gate in GATES:
        out = router_of(gate=gate, budget=8.0)(STATE, MASK)
        assert out.isfinite().all()


def test_the_state_dict_holds_everything_that_training_moves() -> None:
    router, other = router_of(), router_of()
    router.observe(4.0, -0.3)
    router.temperature.fill_(0.3)
    other.load_state_dict(router.state_dict())

    assert torch.equal(other(STATE, MASK), router(STATE, MASK))
    assert int(other.updates) == 1


def test_copies_leave_the_last_batch_behind() -> None:
    router = router_of()
    router(STATE, MASK)

    assert copy.deepcopy(router).record is None
    assert pickle.loads(pickle.dumps(router)).record is None
    assert router.record is not None


@pytest.mark.parametrize("rule", ["coverage", "fixed", "threshold"])
def test_hardened_indices_and_their_mask_agree(rule: str) -> None:
    router = router_of(gate="soft" if rule == "threshold" else "topk")
    level = torch.tensor({"coverage": -1.0, "fixed": 3.0, "threshold": 0.5}[rule])

    indices = HardRankRouter(router, rule=rule, buckets=(2, 4, 8))(STATE, MASK, level)
    mask = RankMask(torch.float32)(indices)

    assert torch.equal(mask.sum(-1), (indices >= 0).sum(-1).float())
    assert not mask[:, 1, 3:].any()


def test_a_masked_gate_of_nothing_is_zero() -> None:
    assert not RankMask(torch.float64)(torch.full((2, 1, 4), -1)).any()


def test_printed_routers_say_what_they_are() -> None:
    router = router_of()

    assert router.extra_repr() == "sites=2, gate=topk, k=coverage, budget=2"
    hard = HardRankRouter(router, rule="coverage", buckets=(2, 8))
    assert hard.extra_repr() == "sites=2, rule=coverage, buckets=[2, 8]"
