"""What gates decided in their last call, as their terms of the objective and diagnostics read it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from torch import nn

from ..errors import UntrainedGateError

R_co = TypeVar("R_co", covariant=True)
Gate = TypeVar("Gate", bound=nn.Module)


class Recording(Protocol[R_co]):
    """A gate that keeps a record of its last call in training."""

    @property
    def record(self) -> R_co | None:
        """None before the first call."""


def last_records(gates: Sequence[Recording[R_co]]) -> tuple[R_co, ...]:
    """The record of each gate.

    Raises:
        UntrainedGateError: there is no gate, or one was not called yet.
    """
    records = tuple(gate.record for gate in gates)
    if not records or any(record is None for record in records):
        raise UntrainedGateError("The gates have decided nothing yet.", remedy="call the model on a batch first")
    return tuple(record for record in records if record is not None)


def gates_among(module: nn.Module, kind: type[Gate]) -> tuple[Gate, ...]:
    """The gates of one kind in a training graph, in the order in which they were put there.

    Its modules are asked, not its nodes, which `torch.compile` cannot follow; in training both say the same, for what
    takes a gate out of a graph takes its module out too.
    """
    return tuple(part for part in module.modules() if isinstance(part, kind))
