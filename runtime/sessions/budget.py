"""Budgets that change per call: a table from budget to the value of one replaceable buffer of the model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from ...errors import ArtifactError, BudgetError


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
    def from_manifest(cls, manifest: Mapping[str, Any]) -> BudgetTable | None:
        """The table of an artifact, None if its budget is fixed.

        Raises:
            ArtifactError: a table that is empty, not finite, or not monotone.
        """
        entry = manifest.get("runtime_budget")
        if entry is None:
            return None
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
        number = float(budget) if isinstance(budget, Real) and not isinstance(budget, bool) else math.nan
        if not self.budgets[0] <= number <= self.budgets[-1]:
            raise BudgetError(
                "This budget is not one the artifact was calibrated for.",
                given=repr(budget),
                expected=f"a number from {self.budgets[0]:g} to {self.budgets[-1]:g}",
                remedy="Choose a budget in this range, or optimize and export again with the one you need.",
            )
        return float(np.interp(number, self.budgets, self.values))


def _unusable(given: str) -> ArtifactError:
    return ArtifactError(
        "The artifact's table of budgets cannot be used.",
        given=given,
        expected='{"initializer": name, "table": [[budget, value], …]} with rising budgets and monotone finite values',
    )
