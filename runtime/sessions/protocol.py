"""What every session answers to, whichever engine runs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a session.

    Attributes:
        name: as the model calls it.
        dtype: of the numpy array.
        shape: sizes; a name where the size varies, None where it varies and has no name.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...]

    def __str__(self) -> str:
        sizes = ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"{self.name}: {self.dtype} ({sizes})"


class Session(Protocol):
    """A loaded artifact, ready to run. Safe to call from several threads."""

    @property
    def provider(self) -> str:
        """The execution provider that really runs the model."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What a call must pass."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What a call returns."""

    @property
    def manifest(self) -> Mapping[str, Any]:
        """The fields of the artifact's `gatefx.json`."""

    @property
    def budget(self) -> Any:
        """What a call may spend, in the method's unit, of several methods a dict by name; settable where the artifact
        has a table for it."""

    @budget.setter
    def budget(self, value: float | Mapping[str, float]) -> None: ...

    def __call__(self, **arrays: Any) -> dict[str, np.ndarray]:
        """`run(arrays)`."""

    def run(
        self, arrays: Mapping[str, Any], budget: float | Mapping[str, float] | None = None
    ) -> dict[str, np.ndarray]:
        """Outputs by name.

        Args:
            arrays: input name → numpy array, torch CPU tensor or nested list.
            budget: for this call only.

        Raises:
            InputError: inputs that are missing, unknown, or do not fit.
            BudgetError: a budget outside the artifact's table.
        """
