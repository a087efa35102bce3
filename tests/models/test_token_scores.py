"""Scores, their predictor and their histogram."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatefx.models.score_histogram import COLD, ScoreHistogram
from gatefx.models.score_predictor import ScorePredictor, fit_predictor
from gatefx.models.token_scores import LayerShift, normalized, real_quantile, shift_squares


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 20), st.integers(0, 99))
def test_the_gram_matrix_gives_the_norm(rank: int, width: int, seed: int) -> None:
    torch.manual_seed(seed)
    u, b = torch.randn(2, 5, rank, dtype=torch.float64), torch.randn(width, rank, dtype=torch.float64)
    torch.testing.assert_close(shift_squares(u, b), (u @ b.t()).square().sum(-1), rtol=0, atol=1e-10)


def test_sites_of_a_layer_add_up_with_scales_and_gates() -> None:
    u, v = torch.randn(2, 5, 3, dtype=torch.float64), torch.randn(2, 5, 2, dtype=torch.float64)
    b, c = torch.randn(7, 3, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    by_token, whole = torch.rand(2, 5, 1, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    shift = LayerShift((2.0, 3.0), (1, 1))(u, b, by_token, v, c, whole)

    both = torch.cat([2.0 * by_token * (u @ b.t()), 3.0 * whole * (v @ c.t())], -1)
    torch.testing.assert_close(shift, both.norm(dim=-1), rtol=0, atol=1e-10)


def test_padding_takes_no_part_in_the_mean_and_scores_nothing() -> None:
    shifts = torch.tensor([[1.0, 3.0, 100.0], [2.0, 2.0, 2.0]])
    hat = normalized(shifts, torch.tensor([[1, 1, 0], [0, 0, 0]]))
    torch.testing.assert_close(hat, torch.tensor([[0.5, 1.5, 0.0], [0.0, 0.0, 0.0]]), rtol=0, atol=1e-5)


def test_quantiles_are_those_of_the_real_tokens() -> None:
    torch.manual_seed(0)
    values, real = torch.randn(3, 40, dtype=torch.float64), (torch.rand(40) > 0.4).long()
    for share in (0.0, 0.3, 0.995):
        wanted = torch.quantile(values[:, real > 0], share, dim=1)
        torch.testing.assert_close(real_quantile(values, real, share), wanted, rtol=0, atol=0)
    assert real_quantile(values, torch.zeros(40), 0.5).isnan().all()


def test_a_predictor_learns_what_the_state_tells() -> None:
    states = torch.nn.functional.layer_norm(torch.randn(2000, 6), (6,))  # what the predictor can see of a state
    scores = (0.5 * torch.tanh(states[:, 0]) - 0.3 * states[:, 1].clamp(-1, 1)).exp()
    predictor = ScorePredictor(6, 16)
    assert torch.equal(predictor(states), torch.zeros(2000))

    left = fit_predictor(predictor, states, scores, steps=400)

    assert left < 0.1 * float(scores.log().var())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in predictor.parameters())


def test_a_histogram_is_cold_at_first_and_forgets_beyond_its_window() -> None:
    histogram = ScoreHistogram(window=2000)
    histogram.observe(torch.ones(COLD - 1))
    assert histogram.is_cold
    histogram.observe(torch.ones(1))
    assert not histogram.is_cold
    for _ in range(10):
        histogram.observe(torch.full((2000,), 4.0))
    assert histogram.total == pytest.approx(2000)
    assert histogram.level(0.5) == pytest.approx(4.0, rel=0.06)


def test_tokens_that_are_gone_are_below_every_threshold() -> None:
    histogram = ScoreHistogram()
    histogram.observe(torch.linspace(0.5, 2.0, 1000), gone=1000)
    assert histogram.level(0.5) == 0.0
    kappa = histogram.level(0.25)
    assert kappa == pytest.approx(1.25, rel=0.06)
    assert histogram.level(1.0) == 0.0
