"""Which waiting requests run together, padded to one length, and how their answers part again. Knows no server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from ...errors import InputError
from ..sessions.protocol import TensorSpec

MASK = "attention_mask"


@dataclass(frozen=True)
class Request:
    """One example that waits for its answer.

    Attributes:
        arrays: input name → (1, T), of one T.
        budget: for this request, of several methods by name; None takes the session's.
        adapter: the session's adapter that it takes; None takes the model's own.
    """

    arrays: Mapping[str, np.ndarray]
    budget: float | Mapping[str, float] | None = None
    adapter: str | None = None

    def __post_init__(self) -> None:
        shapes = {name: array.shape for name, array in self.arrays.items()}
        sizes = set(shapes.values())
        if len(sizes) != 1 or any(not size or size != (1, size[-1]) or not size[-1] for size in sizes):
            raise InputError("A request is one example.", given=str(shapes), expected="every input (1, T), of one T")

    @property
    def length(self) -> int:
        """T of this request."""
        return int(next(iter(self.arrays.values())).shape[1])

    @property
    def kind(self) -> tuple[object, ...]:
        """What requests of one batch have in common beside their length."""
        budget = tuple(sorted(self.budget.items())) if isinstance(self.budget, Mapping) else self.budget
        return budget, self.adapter, tuple(sorted(self.arrays))


def groups(requests: Sequence[Request], *, width: int, most: int) -> list[list[int]]:
    """Indices of the requests that run together, each exactly once, in order of arrival within a group.

    Only requests of one budget and adapter, of the same inputs and of lengths in one bucket share a batch. Without a
    mask among the inputs nothing tells padding from tokens, so that only equal lengths do.

    Args:
        requests: in order of arrival.
        width: of a length bucket, in tokens.
        most: examples in one batch.

    Raises:
        InputError: a width or a number of examples below one.
    """
    if width < 1 or most < 1:
        raise InputError("A batch needs room.", given=f"width={width}, most={most}", expected="both at least 1")
    waiting: dict[tuple[object, ...], list[int]] = {}
    for index, request in enumerate(requests):
        length = request.length
        bucket = -(-length // width) * width if MASK in request.arrays else length
        waiting.setdefault((request.kind, bucket), []).append(index)
    return [alike[start : start + most] for alike in waiting.values() for start in range(0, len(alike), most)]


def padded(requests: Sequence[Request], fill: Mapping[str, int] = MappingProxyType({})) -> dict[str, np.ndarray]:
    """Input name → (B, T), T the longest of one group's requests, padded on the right, where the mask is shut.

    Args:
        requests: of one group.
        fill: input name → the value of padding, where it is not zero: some heads look for it to find a text's end.

    Raises:
        InputError: lengths that differ without a mask.
    """
    longest = max(request.length for request in requests)
    names = list(requests[0].arrays)
    if MASK not in names and any(request.length != longest for request in requests):
        raise InputError("Requests of different lengths need a mask.", given=", ".join(names), expected=MASK)
    return {
        name: np.concatenate(
            [
                np.pad(request.arrays[name], ((0, 0), (0, longest - request.length)), constant_values=fill.get(name, 0))
                for request in requests
            ]
        )
        for name in names
    }


def scattered(
    answers: Mapping[str, np.ndarray], requests: Sequence[Request], outputs: Sequence[TensorSpec], axis: str
) -> list[dict[str, np.ndarray]]:
    """One answer per request, with the padding cut off.

    Args:
        answers: output name → (B, …) of one padded batch.
        requests: of that batch, in its order.
        outputs: the session's specs, which name the axes.
        axis: the name of the sequence axis in the session's specs.

    Raises:
        InputError: an output that does not hold one row per request.
    """
    specs = {spec.name: spec for spec in outputs}
    for name, answer in answers.items():
        if not answer.ndim or answer.shape[0] != len(requests):
            raise InputError(
                f"The output {name!r} cannot be parted.", given=f"{answer.shape}", expected=f"{len(requests)} rows"
            )
    return [
        {
            name: answer[row : row + 1][
                tuple(slice(request.length) if size == axis else slice(None) for size in specs[name].shape)
            ]
            for name, answer in answers.items()
        }
        for row, request in enumerate(requests)
    ]
