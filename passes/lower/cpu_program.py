"""What `fast.for_cpu()` returns: a program over packed weights that stays on the CPU and in its type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from ...errors import BudgetError, ProviderError
from ..recovery import RecoveringProgram


class CpuProgram(RecoveringProgram):
    """A deployed model over packed weights; it follows the budget of the model it came from."""

    @property
    def budget(self) -> NoReturn:
        """Of the model it came from.

        Raises:
            BudgetError: always; read and set it there.
        """
        raise self._elsewhere("a read")

    @budget.setter
    def budget(self, budget: object) -> None:
        raise self._elsewhere(f"budget={budget!r}")

    @staticmethod
    def _elsewhere(given: str) -> BudgetError:
        return BudgetError(
            "A packed model follows the budget of the model it came from.",
            given=given,
            expected="`fast.budget = …` on the model that `for_cpu` was called on",
        )

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> NoReturn:  # noqa: ARG002  # torch's signature
        # Its other tensors are those of the model it came from, which would move with it.
        raise ProviderError(
            "A packed model stays on the CPU and in its type.",
            given="a move or a cast",
            expected="`fast.to(…)` on the model that `for_cpu` was called on, then `for_cpu` again",
        )
