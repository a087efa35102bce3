"""Diagnostics of a routing on masks whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from gatefx.models.rank_statistics import (
    collapse,
    direction_usage,
    elasticity,
    jaccard,
    jensen_shannon,
    rank_summary,
)

RANKS = np.array([4, 4])


def masks(*rows: str) -> np.ndarray:
    """One example a row, its sites separated by spaces: "1100 1000" → (B, S, r)."""
    return np.array([[[float(bit) for bit in site] for site in row.split()] for row in rows])


VARIED = masks("1100 1000", "0011 0100", "1010 0110")


def test_summaries_are_numpy_s() -> None:
    counts = np.arange(1, 101).reshape(20, 5)
    summary = rank_summary(counts)

    assert (summary.mean, summary.p50) == (50.5, 50.5)
    assert (summary.p90, summary.p95) == tuple(np.percentile(counts, [90, 95]))
    assert str(rank_summary(np.array([2, 4]))).startswith("mean 3.00, P50 3")


@pytest.mark.parametrize(
    ("gate", "ranks", "wanted"),
    [
        (VARIED, RANKS, None),
        (masks("1111 1111", "1111 1111"), RANKS, "always on"),
        (masks("0000 0000", "0000 0000"), RANKS, "always off"),
        (masks("1100 1000", "1100 1000"), RANKS, "constant"),
        (masks("1100 1000"), RANKS, None),
        (masks("1100 1100", "1100 1100"), np.array([2, 2]), "always on"),
    ],
)
def test_collapse_has_its_name(gate: np.ndarray, ranks: np.ndarray, wanted: str | None) -> None:
    assert collapse(gate, ranks) == wanted


def test_usage_is_the_mean_mask() -> None:
    assert direction_usage(VARIED)[0].tolist() == pytest.approx([2 / 3, 1 / 3, 2 / 3, 1 / 3])


def test_jaccard_of_equal_disjoint_and_empty_sets() -> None:
    assert jaccard(VARIED, VARIED) == 1.0
    assert jaccard(masks("1100"), masks("0011")) == 0.0
    assert jaccard(masks("1100"), masks("0110")) == pytest.approx(1 / 3)
    assert jaccard(masks("0000"), masks("0000")) == 1.0


def test_divergence_is_zero_for_one_group_and_log_two_for_strangers() -> None:
    assert jensen_shannon(VARIED, VARIED) == pytest.approx(0.0, abs=1e-12)
    assert jensen_shannon(masks("1100"), masks("0011")) == pytest.approx(np.log(2))
    first, second = masks("1100", "1000"), masks("0110")
    assert jensen_shannon(first, second) == pytest.approx(jensen_shannon(second, first))


def test_elasticity_skips_points_of_one_rank() -> None:
    assert elasticity([(4.0, 1.0), (4.0, 2.0), (6.0, 3.0)]) == [0.5]
    assert elasticity([(4.0, 1.0)]) == []
