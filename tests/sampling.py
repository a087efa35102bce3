"""Matrices of cases: a few of them in every run, the others where the slow tests run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def rest_slow(cases: Iterable[Any], keep: int = 1) -> list[Any]:
    """Cases of one argument; those after the first `keep` are marked slow."""
    return [pytest.param(case, marks=_marks(place, keep)) for place, case in enumerate(cases)]


def rest_slow_rows(cases: Iterable[tuple[Any, ...]], keep: int = 1) -> list[Any]:
    """The same of several arguments."""
    return [pytest.param(*case, marks=_marks(place, keep)) for place, case in enumerate(cases)]


def _marks(place: int, keep: int) -> Any:
    return () if place < keep else pytest.mark.slow
