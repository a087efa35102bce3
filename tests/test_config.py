"""Budgets and method options: what is accepted, and what a refusal says."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

import gatefx
from gatefx.config import resolve_budget
from gatefx.errors import BudgetError, GatefxError, MethodError
from gatefx.models.configs.catalogue import resolve_method
from gatefx.models.configs.ccm import CCM


@pytest.mark.parametrize(
    ("budget", "ranks"),
    [(1, 1), (6, 6), (16, 16), (np.int64(6), 6), (0.5, 8), (1.0, 16), ("60%", 9.6), ("100%", 16), ("37.5%", 6)],
)
def test_counts_and_shares_are_budgets(budget: Any, ranks: float) -> None:
    assert resolve_budget(budget, limit=16) == pytest.approx(ranks)


@pytest.mark.parametrize(
    "budget",
    [
        0, -1, 17, 10**9, 10**400, True, False, None, 0.0, -0.5, 1.5, 6.0, math.nan, math.inf, -math.inf, 0.01,
        "6 %", " 6%", "6", "", "%", "nan%", "inf%", "0%", "-5%", "101%", "six", b"60%", [6], {"ccm": 6}, 6 + 0j,
    ],
)  # fmt: skip
def test_anything_else_is_refused_with_what_was_given_and_what_to_do(budget: Any) -> None:
    with pytest.raises(BudgetError) as caught:
        resolve_budget(budget, limit=16)

    text = str(caught.value)
    assert f"given: budget={budget!r}" in text
    assert "expected: an integer from 1 to 16 (ranks)" in text
    assert "what to do: pass for example budget=6" in text


def test_methods_resolve_by_name_and_by_config() -> None:
    assert resolve_method("ccm") == CCM()
    config = CCM(rank=8)
    assert resolve_method(config) is config


@pytest.mark.parametrize("method", ["cmm", "CCM", "", None, 3, ["ccm"], CCM, {"ccm": 1}])
def test_unknown_methods_are_refused_with_the_known_ones(method: Any) -> None:
    with pytest.raises(MethodError, match=r"no method(.|\n)*'ccm'"):
        resolve_method(method)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pool": "median"}, "no pool 'median'"),
        ({"heads": "many"}, "no heads 'many'"),
        ({"gate": "hard"}, "no gate 'hard'"),
        ({"k": 6}, "no k 6"),
        ({"regularizer": None}, "no regularizer None"),
        ({"schedule": "step"}, "no schedule 'step'"),
        ({"router_input": "last"}, "no router_input 'last'"),
        ({"rank": 0}, "rank is out of range"),
        ({"rank": True}, "rank is out of range"),
        ({"rank": "16"}, "rank is out of range"),
        ({"rank": 4.5}, "rank"),
        ({"rank": math.nan}, "rank is out of range"),
        ({"prefix": 0}, "prefix is out of range"),
        ({"prefix": 2.5}, "prefix"),
        ({"k_min": 0}, "k_min is out of range"),
        ({"d_router": 0}, "d_router is out of range"),
        ({"penalty": -0.1}, "penalty is out of range"),
        ({"penalty": math.inf}, "penalty"),
        ({"coverage_rate": math.nan}, "coverage_rate is out of range"),
        ({"coverage_rate": 1.5}, "coverage_rate"),
        ({"alpha": 0}, "alpha"),
        ({"alpha": math.nan}, "alpha"),
        ({"buckets": ()}, "buckets are rank counts"),
        ({"buckets": (0, 2)}, "buckets are rank counts"),
        ({"buckets": (2, 4.0)}, "buckets are rank counts"),
        ({"buckets": 4}, "buckets are rank counts"),
        ({"lora_dropout": 1.0}, "lora_dropout is out of range"),
        ({"lora_dropout": math.nan}, "lora_dropout is out of range"),
        ({"temperature": 0.1}, "temperature falls"),
        ({"temperature_min": 0.0}, "temperature falls"),
        ({"temperature": math.nan}, "temperature falls"),
        ({"target_modules": 3}, "target_modules"),
        ({"rank": 10**400}, "rank is out of range"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: Any, words: str) -> None:
    with pytest.raises(MethodError, match=words):
        CCM(**options)


def test_configs_are_frozen_hashable_and_normalised() -> None:
    config = CCM(buckets=[8, 2, 2], target_modules=["query"], train_modules=["head"])  # type: ignore[arg-type]

    assert (config.buckets, config.target_modules, config.train_modules) == ((2, 8), ("query",), ("head",))
    assert CCM(train_modules="head").train_modules == ("head",)  # type: ignore[arg-type]
    assert hash(config) == hash(dataclasses.replace(config))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.rank = 8  # type: ignore[misc]


def test_defaults_are_the_paper_s() -> None:
    config = CCM()

    assert (config.scale_alpha, CCM(alpha=8).scale_alpha) == (32.0, 8.0)
    assert [config.hidden_width(width) for width in (384, 1024, 1025)] == [256, 256, 512]
    assert CCM(d_router=32).hidden_width(384) == 32


def test_errors_print_one_line_per_fact_and_survive_pickling() -> None:
    import pickle

    error = BudgetError("Too much.", given="9", expected="6", remedy="less")

    assert str(error) == "Too much.\n  given: 9\n  expected: 6\n  what to do: less"
    copied = pickle.loads(pickle.dumps(error))
    assert (type(copied), str(copied)) == (BudgetError, str(error))
    assert issubclass(BudgetError, GatefxError)
    assert gatefx.GatefxError is GatefxError
