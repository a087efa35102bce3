"""Answers of one window of requests: in batches where they are alike, and each alone where a batch is refused."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...errors import GatefxError
from ..sessions.onnxruntime import OnnxSession
from .batching import Request, groups, padded, scattered
from .served_model import ServedModel

Answer = dict[str, np.ndarray] | GatefxError
"""Output name → (1, …), or why this request has none. A refusal is a value: it is nobody else's."""


def answers(
    session: OnnxSession, model: ServedModel, requests: Sequence[Request], *, width: int, most: int
) -> tuple[list[Answer], list[float]]:
    """(an answer per request, in order; by batch, the share of its tokens that was padding).

    What only running shows, such as a token beyond the vocabulary, refuses a whole batch. Its requests then run one by
    one, so that the error reaches the one that it belongs to.

    Args:
        width, most: as `groups`.
    """
    found: dict[int, Answer] = {}
    shares = []
    for indices in groups(requests, width=width, most=most):
        batch = [requests[index] for index in indices]
        lengths = [request.length for request in batch]
        shares.append(1 - sum(lengths) / (len(batch) * max(lengths)))
        found |= zip(indices, _isolated(session, model, batch), strict=True)
    return [found[index] for index in range(len(requests))], shares


def _isolated(session: OnnxSession, model: ServedModel, batch: Sequence[Request]) -> list[Answer]:
    try:
        return list(_together(session, model, batch))
    except GatefxError as error:
        if len(batch) == 1:
            return [error]
    return [answer for request in batch for answer in _isolated(session, model, [request])]


def _together(session: OnnxSession, model: ServedModel, batch: Sequence[Request]) -> list[dict[str, np.ndarray]]:
    alike = batch[0]
    found = session.run(padded(batch, model.fill), budget=alike.budget, adapter=alike.adapter)
    return scattered(found, batch, model.outputs, model.axis)
