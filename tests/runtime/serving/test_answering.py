"""An error of one request is its own: its neighbours in the batch are answered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gatefx.errors import InputError
from gatefx.runtime.serving.answering import answers
from gatefx.runtime.serving.options import ServeOptions
from gatefx.runtime.serving.served_model import ServedModel, served_model

UNKNOWN = 5000


@pytest.fixture(scope="module")
def model(session: Any, served_folder: Path) -> ServedModel:
    return served_model(str(served_folder), session, ServeOptions())


@pytest.mark.parametrize("bad", [(), (0,), (3, 4), tuple(range(12))])
def test_tokens_beyond_the_vocabulary_fail_alone(
    session: Any, model: ServedModel, text: Callable[[int], Any], tolerance: Any, bad: tuple[int, ...]
) -> None:
    texts = [text(seed) for seed in range(12)]
    for index in bad:
        texts[index]["input_ids"][0, -1] = UNKNOWN
    found, _ = answers(session, model, [model.request(given) for given in texts], width=32, most=12)
    for index, (given, answer) in enumerate(zip(texts, found, strict=True)):
        if index in bad:
            assert isinstance(answer, InputError)
            assert str(UNKNOWN) in answer.given
        else:
            assert isinstance(answer, dict)
            expected = session.run(given)["logits"]
            np.testing.assert_allclose(answer["logits"], expected, atol=tolerance[torch.float32], rtol=0)


def test_budgets_part_a_window(session: Any, model: ServedModel, text: Callable[[int], Any], tolerance: Any) -> None:
    budgets = [None, 1, 4, {"ccm": 4.0}, 1.0, None]
    requests = [model.request(text(0), budget) for budget in budgets]
    found, shares = answers(session, model, requests, width=32, most=8)
    assert shares == [0, 0, 0]
    logits = [answer["logits"] for answer in found if isinstance(answer, dict)]
    for budget, answer in zip(budgets, logits, strict=True):
        expected = session.run(text(0), budget=budget)["logits"]
        np.testing.assert_allclose(answer, expected, atol=tolerance[torch.float32], rtol=0)
    assert np.abs(logits[1] - logits[2]).max() > 100 * tolerance[torch.float32]


def test_the_share_of_padding_is_counted(session: Any, model: ServedModel) -> None:
    requests = [model.request({spec.name: [1] * n for spec in model.inputs}) for n in (8, 4, 6)]
    _, shares = answers(session, model, requests, width=8, most=8)
    assert shares == [pytest.approx(0.25)]


def test_what_nobody_foresaw_is_not_hidden(model: ServedModel, text: Callable[[int], Any]) -> None:
    class Broken:
        def run(self, arrays: Any, budget: Any = None, adapter: Any = None) -> Any:
            raise MemoryError

    broken: Any = Broken()
    with pytest.raises(MemoryError):
        answers(broken, model, [model.request(text(0))], width=8, most=8)
