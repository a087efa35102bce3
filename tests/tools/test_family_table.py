"""The table of families and methods: a few cells always, all of them where slow tests run."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gatefx.errors import PassError
from gatefx.models.configs.catalogue import METHODS
from gatefx.models.tiny import ALL_FAMILIES
from gatefx.tools import family_table
from gatefx.tools.family_markdown import markdown
from gatefx.tools.family_table import Cell, State, try_method

from ..sampling import rest_slow_rows

pytest.importorskip("transformers")

#: Tokens dropped with a mask and without; each method once, each on another kind of model.
FEW = [("bert", "masklora"), ("vit", "masklora")]
FEW += list(zip(["gpt2", "t5", "bert", "vit", "xlm-roberta", "whisper"], METHODS, strict=True))


@pytest.mark.parametrize(("family", "method"), rest_slow_rows(FEW, 3))
def test_a_cell_works_or_says_why_not(family: str, method: str) -> None:
    cell = try_method(family, method)

    assert cell.state is not State.WRONG, cell.detail
    assert cell.detail


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_every_cell_works_or_says_why_not(family: str, method: str) -> None:
    cell = try_method(family, method)

    assert cell.state is not State.WRONG, cell.detail
    assert cell.detail


def test_a_model_that_cannot_be_captured_is_declined_with_the_module_s_name() -> None:
    cell = try_method("longformer", "weightlora")

    assert cell.state is State.DECLINED
    assert "LongformerSelfAttention" in cell.detail


def test_an_answer_that_differs_from_its_reference_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(family_table, "TOLERANCE", -1.0)

    assert try_method("distilbert", "weightlora").state is State.WRONG


def test_a_broken_pass_is_wrong_and_not_declined(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **options: Any) -> None:
        raise PassError("A pass broke its contract.")

    monkeypatch.setattr(family_table, "prepare", broken)

    assert try_method("bert", "ccm") == Cell("bert", "ccm", State.WRONG, "PassError: A pass broke its contract.")


def test_an_answer_that_is_no_number_is_infinitely_wrong() -> None:
    def model(value: float) -> Any:
        return lambda: family_table.Answer(logits=torch.tensor([value]))

    assert family_table._gap(model(1.0), model(float("nan")), {}) == float("inf")
    assert family_table._gap(model(100.0), model(101.0), {}) == pytest.approx(0.01)


def test_the_page_numbers_reasons_once() -> None:
    cells = [
        Cell("bert", "ccm", State.WORKS, "3 gathered"),
        Cell("bert", "gatera", State.DECLINED, "no"),
        Cell("vit", "ccm", State.DECLINED, "no"),
        Cell("vit", "gatera", State.WRONG, "apart"),
    ]
    page = markdown(cells, "python table.py", "2026; a machine")

    assert "| bert | works | *declined* (1) |" in page
    assert "| vit | *declined* (1) | **wrong** (2) |" in page
    assert "1 works, 2 declined, 1 wrong" in page
    assert "1. no\n2. apart\n" in page
    assert "- bert, ccm: 3 gathered" in page
