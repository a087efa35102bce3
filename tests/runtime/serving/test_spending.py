"""What is measured of a request is what its graph did: ranks that follow the budget, tokens after its last cut."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gatefx
from gatefx.runtime.serving import spending as module
from gatefx.runtime.serving.options import ServeOptions
from gatefx.runtime.serving.served_model import served_model
from gatefx.runtime.serving.spending import Spending
from gatefx.runtime.sessions.inside import OperatorCall

Text = Callable[[int], dict[str, np.ndarray]]


def test_ranks_follow_the_budget(session: Any, served_folder: Path, text: Text) -> None:
    model = served_model(str(served_folder), session, ServeOptions())
    spending = Spending.open(model, 1)
    assert spending is not None
    means = []
    for budget in (1, 2, 3, 4):
        found = [spending.measured(model.request(text(seed), budget)) for seed in range(20)]
        assert all(set(row) == {"effective_rank"} for row in found)
        means.append(np.mean([row["effective_rank"] for row in found]))
    assert means == sorted(means)
    assert means[0] <= 2 < means[2]
    assert means[3] == 4
    standing = spending.measured(model.request(text(0)))
    assert standing == spending.measured(model.request(text(0), 2))


def test_retention_is_the_share_that_a_cut_leaves(pruned_folder: Path, text: Text) -> None:
    model = served_model(str(pruned_folder), gatefx.load(pruned_folder), ServeOptions())
    spending = Spending.open(model, 1)
    assert spending is not None
    for seed in range(20):
        request = model.request(text(seed))
        measured = spending.measured(request)
        assert set(measured) == {"retention"}
        assert abs(measured["retention"] - 0.5) <= 1 / request.length


def test_tokens_are_counted_after_the_last_cut_and_without_padding(
    served_folder: Path, session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Inside:
        def __init__(self, artifact: Any, names: tuple[str, ...], *, threads: int) -> None:
            assert names == ("second",)

        def run(self, arrays: Any, budgets: Any) -> dict[str, np.ndarray]:
            return {"second": np.array([[True, True, False]])}

    cuts = tuple(OperatorCall("layer", ("scores", "counts"), ("places", valid)) for valid in ("first", "second"))
    monkeypatch.setattr(module, "operator_calls", lambda _, operator: cuts if operator == "SelectTokens" else ())
    monkeypatch.setattr(module, "InsideSession", Inside)
    model = served_model(str(served_folder), session, ServeOptions())
    spending = Spending.open(model, 1)
    assert spending is not None
    request = model.request({"input_ids": [1] * 6, "attention_mask": [1, 1, 1, 1, 1, 0]})
    assert spending.measured(request) == {"retention": pytest.approx(0.4)}


def test_a_graph_that_shows_no_choice_is_not_measured(
    served_folder: Path, session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "operator_calls", lambda *_: ())
    assert Spending.open(served_model(str(served_folder), session, ServeOptions()), 1) is None
