"""What hardening one method decided: its budget, how the budget may change at run time, and what to report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ..errors import BudgetError
from .recovery import Recovery


@dataclass(frozen=True)
class RuntimeBudget:
    """How a buffer of the deployed graph follows from a budget that changes at run time.

    Attributes:
        buffer: the tensor's name in the graph, and its initializer's in ONNX.
        table: (budget, value) pairs, budgets strictly rising, values monotone; between two, on the line.
        unit: what the budget counts, for messages: "ranks", "tokens kept (share)", …
    """

    buffer: str
    table: tuple[tuple[float, float], ...]
    unit: str

    def value(self, budget: float) -> float:
        """The buffer's value at a budget.

        Raises:
            BudgetError: a budget outside the table.
        """
        budgets, values = zip(*self.table, strict=True)
        if not budgets[0] <= budget <= budgets[-1]:
            raise BudgetError(
                "The budget is outside what was calibrated.",
                given=f"budget={budget:g}",
                expected=f"{budgets[0]:g} to {budgets[-1]:g} {self.unit}",
                remedy="optimize again with data= for a larger range",
            )
        return float(np.interp(budget, budgets, values))


@dataclass(frozen=True)
class Decision:
    """One method's hardened gates.

    Attributes:
        budget: what was asked for, in the method's unit; None where the trained gates decide alone.
        limit: the budget that keeps everything.
        runtime: how the budget changes at run time; None where it cannot.
        notes: sentences for the report.
        recovery: when examples are run again with everything kept; None never.
        facts: plain data for the manifest, the report and `gatefx inspect`.
    """

    budget: float | None
    limit: float
    runtime: RuntimeBudget | None = None
    recovery: Recovery | None = None
    notes: tuple[str, ...] = ()
    facts: Mapping[str, object] = field(default_factory=dict)
