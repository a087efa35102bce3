"""Budgets that change per call: a table from budget to the value of one replaceable buffer of the model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from ...errors import ArtifactError, BudgetError
from .protocol import TensorSpec


@dataclass(frozen=True)
class BudgetTable:
    """How the threshold `initializer` of the model follows from a budget.

    Attributes:
        initializer: name of the buffer that is fed.
        budgets: strictly rising.
        values: the buffer's value at each budget, rising or falling throughout; between two budgets, on the line.
    """

    initializer: str
    budgets: tuple[float, ...]
    values: tuple[float, ...]

    @classmethod
    def from_manifest(cls, manifest: Mapping[str, Any]) -> dict[str, BudgetTable]:
        """The tables of an artifact by method; empty where its budgets are fixed.

        Raises:
            ArtifactError: a table that is empty, not finite, or not monotone.
        """
        entries = manifest.get("runtime_budgets") or {}
        if not isinstance(entries, Mapping):
            raise _unusable(str(entries))
        return {name: cls._from_entry(entry) for name, entry in entries.items()}

    @classmethod
    def _from_entry(cls, entry: Mapping[str, Any]) -> BudgetTable:
        try:
            points = sorted((float(budget), float(value)) for budget, value in entry["table"])
            name = str(entry["initializer"])
        except (KeyError, TypeError, ValueError) as error:
            raise _unusable(str(entry)) from error
        budgets, values = tuple(point[0] for point in points), tuple(point[1] for point in points)
        steps, rises = np.diff(budgets), np.diff(values)
        finite = all(math.isfinite(number) for number in (*budgets, *values))
        if not points or not finite or not (steps > 0).all() or ((rises > 0).any() and (rises < 0).any()):
            raise _unusable(str(entry["table"]))
        return cls(name, budgets, values)

    def value(self, budget: float) -> float:
        """The buffer's value at `budget`.

        Raises:
            BudgetError: no finite number, or outside the table.
        """
        number = _number(budget)
        if not self.budgets[0] <= number <= self.budgets[-1]:
            raise BudgetError(
                "This budget is not one the artifact was calibrated for.",
                given=repr(budget),
                expected=f"a number from {self.budgets[0]:g} to {self.budgets[-1]:g}",
                remedy="Choose a budget in this range, or optimize and export again with the one you need.",
            )
        return float(np.interp(number, self.budgets, self.values))

    def fed(self, budget: float, spec: TensorSpec) -> np.ndarray:
        """What is fed for the buffer at `budget`, as `spec` has it; raises as `value`."""
        shape = tuple(size if isinstance(size, int) else 1 for size in spec.shape)
        return np.full(shape, self.value(budget), dtype=spec.dtype)


def _number(budget: object) -> float:
    """A budget as a float; NaN, which no table holds, for what is none."""
    if not isinstance(budget, Real) or isinstance(budget, bool):
        return math.nan
    try:
        return float(budget)
    except OverflowError:
        return math.nan


def by_method(budget: Any, tables: Mapping[str, BudgetTable], exported: object) -> dict[str, float]:
    """Budgets by method: a number where one budget may change, or a mapping with some of several.

    Args:
        exported: the budget of the export, for messages.

    Raises:
        BudgetError: every budget is fixed, one number for several, a method without a table, or out of its range.
    """
    if not tables:
        raise BudgetError(
            "The budget of this artifact is fixed.",
            given=f"an artifact exported with budget {exported!r}",
            expected="an artifact whose manifest has runtime_budgets",
            remedy="Optimize and export again with the budget you need.",
        )
    if not isinstance(budget, Mapping):
        if len(tables) > 1:
            raise BudgetError(
                "Several budgets may change.", given=repr(budget), expected=f"a dict with some of {', '.join(tables)}"
            )
        budget = {next(iter(tables)): budget}
    unknown = [str(name) for name in budget if name not in tables]
    if unknown:
        raise BudgetError(
            "These budgets are fixed or not there.", given=", ".join(unknown), expected=f"some of {', '.join(tables)}"
        )
    for name, value in budget.items():
        tables[name].value(value)
    return {name: float(value) for name, value in budget.items()}


def _unusable(given: str) -> ArtifactError:
    return ArtifactError(
        "The artifact's table of budgets cannot be used.",
        given=given,
        expected='{"initializer": name, "table": [[budget, value], …]} with rising budgets and monotone finite values',
    )
