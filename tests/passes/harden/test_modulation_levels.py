"""calibrate_level: the level that meets a share of tokens on held-out batches, on the states that hard gates leave."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatefx.passes.find.modulations import modulations_of
from gatefx.passes.harden.levels import level_for
from gatefx.passes.harden.modulation import LEVEL, HardenModulations
from gatefx.passes.harden.modulation_levels import calibrate_level, collect_logits, token_masks


@pytest.fixture
def data(inputs: Any) -> Any:
    return [inputs(8, tokens, seed=tokens) for tokens in (3, 9, 14)]


def taken(graph: Any, level: float, data: Any) -> tuple[int, int]:
    """(tokens×sites that take the update, how many there are) in a graph hardened at a level."""
    hard = HardenModulations(level)(graph).graph_module
    chosen: list[torch.Tensor] = []
    for index in (0, 1):
        hard.get_submodule(f"hard_modulation_{index}").register_forward_hook(lambda *call: chosen.append(call[2]))
    counts = [0, 0]
    for batch in data:
        chosen.clear()
        hard(*batch.values())
        real = batch["attention_mask"].bool()
        counts[0] += sum(int((choice & real).sum()) for choice in chosen)
        counts[1] += 2 * int(real.sum())
    return counts[0], counts[1]


@pytest.mark.parametrize("update", ["hira", "lora"])
@pytest.mark.parametrize("budget", [0.1, 0.5, 0.8, 1.0])
def test_the_budget_is_met_by_the_hard_graph(modulated: Any, data: Any, update: str, budget: float) -> None:
    graph = modulated(update)
    found = calibrate_level(graph, data, budget=budget, level=0.0, show=False)
    some, every = taken(graph, found.level, data)

    assert found.share == pytest.approx(some / every, abs=1e-9), "what it reports is what happens"
    assert found.share == pytest.approx(budget, abs=0.03)


def test_shares_are_reported_site_by_site(modulated: Any, data: Any) -> None:
    graph = modulated()
    found = calibrate_level(graph, data, budget=0.4, level=0.0, show=False)

    assert set(found.sites) == {"first", "second"}
    assert np.mean([site.share for site in found.sites.values()]) == pytest.approx(found.share)
    assert all(0 < site.gate < 1 for site in found.sites.values())


def test_without_a_budget_the_threshold_stands(modulated: Any, data: Any) -> None:
    graph = modulated()
    level = math.log(0.7 / 0.3)
    found = calibrate_level(graph, data, budget=None, level=level, show=False)

    assert found.level == level
    assert found.threshold == pytest.approx(0.7)
    some, every = taken(graph, level, data)
    assert found.share == pytest.approx(some / every)


def test_the_table_is_monotone_and_holds_the_budget(modulated: Any, data: Any) -> None:
    found = calibrate_level(modulated(), data, budget=0.37, level=0.0, show=False)
    shares, levels = zip(*found.table, strict=True)

    assert 0.37 in shares
    assert shares[-1] == 1
    assert all(np.diff(shares) > 0)
    assert all(np.diff(levels) <= 0)
    assert np.interp(0.37, shares, levels) == pytest.approx(found.level, abs=0.05)


def test_padding_has_no_say(modulated: Any, data: Any, inputs: Any) -> None:
    graph = modulated()
    masks = token_masks(graph)
    assert masks == {"first": "attention_mask", "second": "attention_mask"}
    clean = collect_logits(graph, data, masks, show=False)
    spoilt = [{**batch, "x": batch["x"] + 100 * (1 - batch["attention_mask"]).unsqueeze(-1)} for batch in data]

    real = sum(int(batch["attention_mask"].sum()) for batch in data)
    for name, logits in collect_logits(graph, spoilt, masks, show=False).items():
        assert logits.shape == (real,)
        assert torch.equal(logits, clean[name])


def test_the_trained_graph_is_left_alone(modulated: Any, data: Any) -> None:
    graph = modulated()
    calibrate_level(graph, data, budget=0.4, level=0.0, show=False)

    assert not hasattr(graph, LEVEL)
    assert len(modulations_of(graph)) == 2
    assert not any(module._forward_hooks for module in graph.modules())


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-400, 400), min_size=1, max_size=40, unique=True), st.floats(0.01, 1))
def test_a_level_keeps_the_wanted_number(values: list[int], budget: float) -> None:
    logits = {"a": torch.tensor(values[::2]) / 8, "b": torch.tensor(values[1::2]) / 8}
    level = level_for(logits, budget)
    kept = sum(int((row >= level).sum()) for row in logits.values())

    assert kept == max(1, round(budget * len(values)))
