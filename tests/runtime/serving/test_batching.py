"""Every request runs once, beside its like, and gets back what it would have got alone."""

from __future__ import annotations

import numpy as np
import pytest

from gatefx.errors import InputError
from gatefx.runtime.serving.batching import Request, groups, padded, scattered
from gatefx.runtime.sessions.protocol import TensorSpec

OUTPUTS = (
    TensorSpec("tokens", np.dtype("float64"), ("batch", "sequence")),
    TensorSpec("pooled", np.dtype("float64"), ("batch", 1)),
)


def _request(ids: np.ndarray, budget: float | None = None, *, mask: bool = True) -> Request:
    arrays = {"input_ids": ids[None]}
    return Request({**arrays, "attention_mask": np.ones_like(ids)[None]} if mask else arrays, budget)


def _model(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    kept = arrays["input_ids"] * arrays["attention_mask"]
    return {"tokens": np.cumsum(kept, axis=1) * 0.5, "pooled": kept.sum(axis=1, keepdims=True) * 1.0}


def test_ragged_requests_get_the_answers_they_get_alone() -> None:
    random = np.random.default_rng(0)
    requests = [_request(random.integers(1, 99, random.integers(1, 70)), random.choice([2.0, 4.0])) for _ in range(200)]
    seen = []
    for group in groups(requests, width=16, most=8):
        batch = [requests[index] for index in group]
        assert len(batch) <= 8
        assert len({request.budget for request in batch}) == 1
        assert max(r.length for r in batch) - min(r.length for r in batch) < 16
        parted = scattered(_model(padded(batch)), batch, OUTPUTS, "sequence")
        for request, answer in zip(batch, parted, strict=True):
            alone = _model(dict(request.arrays))
            assert all(np.array_equal(answer[name], alone[name]) for name in alone)
        seen += group
    assert sorted(seen) == list(range(200))


def test_each_adapter_has_its_batches() -> None:
    names = [None, "legal", "medical", "legal", None]
    requests = [Request(_request(np.arange(1, 5)).arrays, 2.0, name) for name in names]
    assert groups(requests, width=16, most=8) == [[0, 4], [1, 3], [2]]


def test_without_a_mask_only_equal_lengths_share_a_batch() -> None:
    requests = [_request(np.arange(1, n), mask=False) for n in (5, 6, 5)]
    assert groups(requests, width=16, most=8) == [[0, 2], [1]]
    with pytest.raises(InputError, match="need a mask"):
        padded(requests)


def test_what_is_no_single_example_is_refused() -> None:
    with pytest.raises(InputError, match="one example"):
        Request({"input_ids": np.ones((2, 3), dtype=np.int64)})
    with pytest.raises(InputError, match="needs room"):
        groups([], width=0, most=1)


def test_an_output_without_a_row_per_request_is_refused() -> None:
    request = _request(np.arange(1, 4))
    with pytest.raises(InputError, match="parted"):
        scattered({"pooled": np.ones((2, 1))}, [request], OUTPUTS, "sequence")
