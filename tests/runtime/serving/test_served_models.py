"""A request goes to the model that its adapter names, and a name that is none's is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gatefx.errors import InputError
from gatefx.runtime.serving.options import ServeOptions
from gatefx.runtime.serving.served_model import ServedModel, served_model
from gatefx.runtime.serving.served_models import OWN, ServedModels

GOOD = {"input_ids": [7, 8, 9], "attention_mask": [1, 1, 1]}


@pytest.fixture(scope="module")
def model(session: Any, served_folder: Path) -> ServedModel:
    return replace(served_model(str(served_folder), session, ServeOptions()), adapters=("plain",))


@pytest.fixture(scope="module")
def models(model: ServedModel) -> ServedModels:
    return ServedModels(model, {"short": replace(model, longest=2), "long": replace(model, adapters=())})


def test_requests_go_to_the_model_of_their_adapter(models: ServedModels) -> None:
    for adapter, key, inside in ((None, OWN, None), ("plain", OWN, "plain"), ("long", "long", None)):
        found, request = models.request(GOOD, 3, adapter)
        assert (found, request.adapter, request.budget) == (key, inside, {"ccm": 3.0})
    assert models.model(OWN) is models.own
    assert models.model("long") is models.others["long"]
    assert [key for key, _ in models] == [OWN, "short", "long"]


def test_a_request_is_checked_by_the_model_that_answers_it(models: ServedModels) -> None:
    with pytest.raises(InputError, match="too long"):
        models.request(GOOD, adapter="short")


@pytest.mark.parametrize("adapter", ["legal", "", 3, ["long"], {"long": 1}, False])
def test_other_names_are_refused(models: ServedModels, adapter: Any) -> None:
    with pytest.raises(InputError, match=r"no such adapter[\s\S]*long, plain, short"):
        models.request(GOOD, adapter=adapter)


def test_it_says_which_adapters_there_are(models: ServedModels) -> None:
    said = models.described()
    assert said["adapters"] == ["plain", "short", "long"]
    assert said["others"]["short"]["longest"] == 2
    assert said["inputs"] == models.own.described()["inputs"]


@pytest.mark.parametrize(("name", "said"), [("", "cannot have"), ("a#b", "cannot have"), ("plain", "itself")])
def test_names_that_would_be_mixed_up_are_refused(model: ServedModel, name: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        ServedModels(model, {name: model})
