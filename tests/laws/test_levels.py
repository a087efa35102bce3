"""Laws of calibrated levels: they meet the budget as nearly as the scores allow, and grow with it."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gatefx.models.level_solver import LevelSolver
from gatefx.passes.harden.calibrate import RouterScores, calibrate

LAW = settings(max_examples=40, deadline=None, derandomize=True)
RANKS = torch.tensor([16, 16, 5])


def scores_of(seed: int, rule: str, sharpness: float, examples: int = 40) -> Tensor:
    logits = torch.randn(examples, 3, 16, generator=torch.Generator().manual_seed(seed)) * sharpness
    inside = torch.arange(16) < RANKS.unsqueeze(-1)
    if rule == "coverage":
        return torch.softmax(logits.masked_fill(~inside, float("-inf")), -1)
    return torch.sigmoid(logits) * inside


def solver(seed: int, rule: str, sharpness: float, buckets: Any = None) -> LevelSolver:
    stops = None if buckets is None else torch.tensor(buckets)
    return LevelSolver([scores_of(seed, rule, sharpness)], [RANKS], rule=rule, k_min=1, buckets=stops)


sharpness = st.sampled_from([0.3, 1.0, 5.0, 20.0])
blunt = st.sampled_from([0.3, 1.0, 3.0])  # sharper ones saturate, and equal scores can only be taken together


@LAW
@given(
    st.integers(0, 10_000),
    st.sampled_from(["coverage", "threshold"]),
    st.sampled_from([0.3, 1.0, 3.0]),
    st.floats(1.5, 10.0),
)
def test_a_level_meets_its_budget(seed: int, rule: str, sharp: float, budget: float) -> None:
    found = solver(seed, rule, sharp)

    assert found.mean_count(found.level_for(budget)) == pytest.approx(budget, abs=0.1)


@LAW
@given(st.integers(0, 10_000), st.sampled_from(["coverage", "threshold"]), sharpness, st.floats(2.0, 10.0))
def test_no_other_level_comes_nearer_with_buckets(seed: int, rule: str, sharp: float, budget: float) -> None:
    found = solver(seed, rule, sharp, (2, 4, 8, 16))
    gap = abs(found.mean_count(found.level_for(budget)) - budget)

    lowest, highest = (-40.0, 0.0) if rule == "coverage" else (0.0, 1.0)
    others = [lowest + (highest - lowest) * i / 60 for i in range(61)]
    assert gap <= min(abs(found.mean_count(level) - budget) for level in others) + 0.05


@LAW
@given(st.integers(0, 10_000), st.sampled_from(["coverage", "threshold"]), sharpness)
def test_a_larger_budget_never_gets_fewer_ranks(seed: int, rule: str, sharp: float) -> None:
    found = solver(seed, rule, sharp, (2, 4, 8, 16))
    calibration = calibrate(
        RouterScores((scores_of(seed, rule, sharp),), (RANKS,), ("a", "b", "c")),
        6.0,
        rule=rule,
        k_min=1,
        buckets=(2, 4, 8, 16),
    )

    every = calibration.table[-1][0]  # the mean rank of the sites: more than that no mean can be
    counts = [found.counts(calibration.level_for(budget)) for budget in (1, 2, 3.3, 6, 6.1, 10, every)]
    for fewer, more in itertools.pairwise(counts):
        assert bool((more >= fewer).all())


def test_a_fixed_rule_has_the_budget_for_a_level() -> None:
    found = LevelSolver([scores_of(0, "coverage", 1.0)], [RANKS], rule="fixed", k_min=1, buckets=None)

    assert found.level_for(6.0) == 6.0


def test_identical_scores_still_have_a_level() -> None:
    flat = torch.full((8, 1, 4), 0.25)
    found = LevelSolver([flat], [torch.tensor([4])], rule="coverage", k_min=1, buckets=None)

    for budget in (1.0, 2.0, 3.0, 4.0):
        assert found.mean_count(found.level_for(budget)) == budget
