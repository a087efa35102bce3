"""StoIHT on adapter weights: the step, ties, and the overlap of two choices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatefx.models.adapter_weight import AdapterWeight
from gatefx.models.iterative_thresholding import hard_threshold, kept_overlap, largest, threshold_step

finite = st.floats(-3, 3, width=32)


def weights_with(omega: list[float], gradient: list[float | None]) -> list[AdapterWeight]:
    weights = [AdapterWeight() for _ in omega]
    for weight, value, slope in zip(weights, omega, gradient, strict=True):
        weight.omega.fill_(value)
        if slope is not None:
            (weight() * slope).backward()
    return weights


@given(st.lists(finite, min_size=1, max_size=12), st.data())
@settings(max_examples=50, deadline=None)
def test_the_k_largest_stay_as_they_are(values: list[float], data: st.DataObject) -> None:
    kept = data.draw(st.integers(1, len(values)))
    result = hard_threshold(torch.tensor(values), kept)
    order = np.argsort(-np.abs(np.float32(values)), kind="stable")

    assert all(float(result[i]) == np.float32(values[i]) for i in order[:kept])
    least = abs(np.float32(values[order[kept - 1]]))
    assert all(float(result[i]) == 0 or abs(float(result[i])) == least for i in order[kept:])


def test_entries_that_tie_with_the_last_stay() -> None:
    assert hard_threshold(torch.tensor([1.0, -2.0, 1.0, 0.5]), 2).tolist() == [1.0, -2.0, 1.0, 0.0]


def test_without_a_gradient_nothing_is_chosen() -> None:
    weights = weights_with([1.0, 1.0, 1.0], [None, None, None])
    threshold_step(weights, 1, 0.1)

    assert [float(weight.omega) for weight in weights] == [1.0, 1.0, 1.0]
    assert [int(weight.updates) for weight in weights] == [1, 1, 1]


def test_the_step_does_not_depend_on_the_loss_s_scale() -> None:
    slopes = [0.3, -1.0, 0.2, -0.4]
    small = weights_with([1.0] * 4, list(slopes))
    large = weights_with([1.0] * 4, [1024 * slope for slope in slopes])
    for weights in (small, large):
        threshold_step(weights, 2, 0.1)

    assert [float(w.omega) for w in small] == pytest.approx([float(w.omega) for w in large])
    assert [float(w.omega) != 0 for w in small] == [False, True, False, True]


def test_the_largest_are_listed_by_position_and_the_earlier_of_equals() -> None:
    assert largest([1.0, 3.0, 1.0, 2.0], 3) == (0, 1, 3)
    assert largest([0.0, 0.0], 1) == (0,)


def test_overlap_of_two_choices() -> None:
    assert kept_overlap(("a", "b"), ("b", "c")) == pytest.approx(1 / 3)
    assert kept_overlap(("a",), ("a",)) == kept_overlap((), ()) == 1.0
    assert kept_overlap(("a",), ()) == 0.0
