"""Levels that meet a share, between scores that differ by more than rounding."""

from __future__ import annotations

import pytest
import torch

from gatefx.passes.harden.levels import NEAR, level_for, level_table, share_above


def test_a_level_lies_halfway_between_two_scores() -> None:
    assert level_for({"a": torch.tensor([4.0, 1.0]), "b": torch.tensor([3.0, 2.0])}, 0.5) == 2.5


def test_of_gaps_within_reach_the_widest_is_taken() -> None:
    scores = torch.cat([torch.linspace(2, 1, 500), torch.linspace(0.5, 0, 500)])

    assert level_for({"a": scores}, 0.501) == pytest.approx(0.75)


@pytest.mark.parametrize(("budget", "level", "share"), [(0.5, 2.5, 0.25), (0.6, 0.5, 0.75)])
def test_scores_that_differ_by_rounding_stay_together(budget: float, level: float, share: float) -> None:
    shared = 1.0 + 1e-8 * torch.rand(4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scores = {"a": torch.tensor([4.0, 4.5]).double(), "b": shared, "c": torch.zeros(2).double()}

    found = level_for(scores, budget)

    assert found == pytest.approx(level)
    assert share_above(scores, found) == share


@pytest.mark.parametrize("count", [40_000, 1_000_000])
@pytest.mark.parametrize("budget", [0.1, 0.5, 0.9])
def test_an_outlier_does_not_make_the_other_scores_look_equal(count: int, budget: float) -> None:
    scores = torch.randn(count, generator=torch.Generator().manual_seed(0)).exp() / 10
    scores[0] = 1000.0

    assert share_above({"a": scores}, level_for({"a": scores}, budget)) == pytest.approx(budget, abs=NEAR)


def test_a_tie_among_dense_scores_is_left_at_its_edge() -> None:
    dense = torch.rand(10_000, generator=torch.Generator().manual_seed(0)).double()
    scores = {"a": dense, "shared": torch.full((500,), 0.5).double()}
    whole = 10_500
    above = int((dense > 0.5).sum())

    found = share_above(scores, level_for(scores, (above + 100) / whole))

    assert found == pytest.approx(above / whole, abs=0.001)


def test_equal_scores_everywhere_still_have_a_level() -> None:
    assert level_for({"a": torch.ones(8)}, 0.5) == 1.0


def test_a_table_never_rises_with_the_share() -> None:
    scores = {"a": torch.rand(400, generator=torch.Generator().manual_seed(0))}
    shares, levels = zip(*level_table(scores, 0.5, level_for(scores, 0.5)), strict=True)

    assert list(shares) == sorted(shares)
    assert list(levels) == sorted(levels, reverse=True)
