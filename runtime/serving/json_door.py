"""JSON ↔ requests and answers, and the HTTP status of every error. Knows no server.

A request is `{"inputs": {name: [T numbers]}, "budget": 4, "adapter": "legal"}`, the latter two optional; its answer
`{"outputs": {name: [[…]]}}`.
An error is `{"error": problem, "given": …, "expected": …, "what_to_do": …, "retriable": false}`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from ...errors import BudgetError, GatefxError, InputError, UnansweredError

MOST_BYTES = 16 * 2**20
"""Of one request's body."""

OK, UNFIT, TOO_LARGE, LATER, FAILED = 200, 422, 413, 503, 500
_FIELDS = ("inputs", "budget", "adapter")
_SHAPE = '{"inputs": {name: [numbers]}, "budget": number, "adapter": name}, the latter two optional'


class TooLargeError(InputError):
    """A body that is not read."""


def parsed(body: bytes) -> tuple[Any, Any, Any]:
    """(inputs, budget, adapter) of a request's body; what they hold is checked by `ServedModel.request`.

    Raises:
        InputError: no JSON object, NaN or infinities, an unknown field, or no inputs; TooLargeError: see `MOST_BYTES`.
    """
    if len(body) > MOST_BYTES:
        raise too_large(len(body))
    try:
        content = json.loads(body, parse_constant=_not_json)
    except (ValueError, RecursionError) as error:
        raise InputError("The body is no JSON.", given=str(error), expected=_SHAPE) from error
    if not isinstance(content, dict):
        raise InputError("The body is no JSON object.", given=type(content).__name__, expected=_SHAPE)
    unknown = [name for name in content if name not in _FIELDS]
    if unknown or "inputs" not in content:
        raise InputError(
            f"The request has no field {', '.join(map(repr, unknown))}." if unknown else "The request has no inputs.",
            given=", ".join(content) or "nothing",
            expected=_SHAPE,
        )
    return content["inputs"], content.get("budget"), content.get("adapter")


def too_large(size: int) -> TooLargeError:
    """The error for a body of `size` bytes."""
    return TooLargeError("The body is too large.", given=f"{size} bytes", expected=f"at most {MOST_BYTES}")


def answered(answer: Mapping[str, np.ndarray]) -> bytes:
    """The body of an answer; every float32 is written so that reading gives the same bits.

    Raises:
        GatefxError: numbers that JSON cannot hold.
    """
    try:
        return json.dumps(
            {"outputs": {name: array.tolist() for name, array in answer.items()}}, allow_nan=False
        ).encode()
    except ValueError as error:
        raise GatefxError("The model answered with numbers that are not finite.", given=str(error)) from error


def refused(error: GatefxError) -> tuple[int, bytes]:
    """(HTTP status, body) of an error."""
    content = {
        "error": error.problem,
        "given": error.given,
        "expected": error.expected,
        "what_to_do": error.remedy,
        "retriable": isinstance(error, UnansweredError),
    }
    return _status(error), json.dumps(content).encode()


def _status(error: GatefxError) -> int:
    if isinstance(error, TooLargeError):
        return TOO_LARGE
    if isinstance(error, UnansweredError):
        return LATER
    return UNFIT if isinstance(error, InputError | BudgetError) else FAILED


def _not_json(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")
