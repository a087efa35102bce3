"""JSON becomes requests and answers without losing a bit, and each error has its status."""

from __future__ import annotations

import json

import numpy as np
import pytest

from gatefx.errors import ArtifactError, BudgetError, GatefxError, InputError, UnansweredError
from gatefx.runtime.serving.json_door import MOST_BYTES, answered, parsed, refused, too_large


def test_a_request_is_parted_into_inputs_budget_and_adapter() -> None:
    assert parsed(b'{"inputs": {"input_ids": [1, 2]}, "budget": 4}') == ({"input_ids": [1, 2]}, 4, None)
    assert parsed(b'{"inputs": {}, "adapter": "legal"}') == ({}, None, "legal")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"\xff\xfe\xfa", "no JSON"),
        (b'{"inputs": {"x": [NaN]}}', "no JSON"),
        (b'{"inputs": {"x": [-Infinity]}}', "no JSON"),
        (b"[" * 200_000, "no JSON"),
        (b"[1]", "no JSON object"),
        (b"{}", "no inputs"),
        (b'{"inputs": {}, "buget": 3}', "no field 'buget'"),
        (b'{"inputs": {}, "adaptor": "medical"}', "no field 'adaptor'"),
    ],
)
def test_what_is_no_request_is_refused(body: bytes, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        parsed(body)
    assert refused(caught.value)[0] == 422


def test_a_body_too_large_is_not_read() -> None:
    with pytest.raises(InputError, match="too large") as caught:
        parsed(b" " * (MOST_BYTES + 1))
    assert refused(caught.value)[0] == refused(too_large(1))[0] == 413


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_answers_keep_every_bit(dtype: type) -> None:
    random = np.random.default_rng(0)
    array = (random.standard_normal((1, 3, 5)) * 10.0 ** random.integers(-12, 12, (1, 3, 5))).astype(dtype)
    again = json.loads(answered({"logits": array}))["outputs"]["logits"]
    assert np.array_equal(np.asarray(again, dtype=dtype), array)


def test_answers_that_json_cannot_hold_are_the_servers_fault() -> None:
    with pytest.raises(GatefxError, match="not finite") as caught:
        answered({"logits": np.array([[np.nan]])})
    assert refused(caught.value)[0] == 500


@pytest.mark.parametrize(
    ("error", "status", "retriable"),
    [
        (InputError("Odd.", given="a", expected="b", remedy="c"), 422, False),
        (BudgetError("Odd.", given="a", expected="b", remedy="c"), 422, False),
        (UnansweredError("Odd.", given="a", expected="b", remedy="c"), 503, True),
        (ArtifactError("Odd.", given="a", expected="b", remedy="c"), 500, False),
    ],
)
def test_errors_say_what_to_do_and_whose_fault_they_are(error: GatefxError, status: int, retriable: bool) -> None:
    found, body = refused(error)
    assert found == status
    expected = {"error": "Odd.", "given": "a", "expected": "b", "what_to_do": "c", "retriable": retriable}
    assert json.loads(body) == expected
