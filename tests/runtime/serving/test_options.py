"""Options that no server could follow are refused before anything starts."""

from __future__ import annotations

import math
from typing import Any

import pytest

from gatefx.errors import InputError
from gatefx.runtime.serving.options import ServeOptions


@pytest.mark.parametrize("name", ["replicas", "max_batch", "width", "threads", "queued", "longest"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "2"])
def test_counts_are_integers_from_one(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"{name} is no count"):
        ServeOptions(**{name: value})


@pytest.mark.parametrize("name", ["wait_ms", "drain_s"])
@pytest.mark.parametrize("value", [-1, math.nan, math.inf, "5", True])
def test_times_are_finite(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"{name} is no time"):
        ServeOptions(**{name: value})


@pytest.mark.parametrize("value", [-1, 0.5, "2"])
def test_a_sample_is_one_in_a_count(value: Any) -> None:
    with pytest.raises(InputError, match="measure_every is no count"):
        ServeOptions(measure_every=value)


def test_nothing_has_to_be_said() -> None:
    options = ServeOptions()
    assert (options.replicas, options.longest, options.provider) == (1, None, "cpu")
    assert options.measure_every == 0
    assert ServeOptions(wait_ms=0, drain_s=0, longest=1).longest == 1
