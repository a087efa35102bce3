"""Diagnostics of a routing against counts made by hand from the routers' own records."""

from __future__ import annotations

import pytest
import torch

from gatefx import CCM, prepare
from gatefx.errors import InputError
from gatefx.models.tiny import tiny, tiny_inputs
from gatefx.passes.gated import GatedModel
from gatefx.passes.methods.ccm_diagnostics import divergence, routing_diagnostics, site_names, stability
from gatefx.passes.methods.ccm_schedule import records_of, routers_of


@pytest.fixture(scope="module")
def model() -> GatedModel:
    example = tiny_inputs("bert", batch=4, tokens=9)
    return prepare(tiny("bert"), CCM(rank=8), budget=3, example_inputs=example)


BATCHES = [tiny_inputs("bert", batch=4, tokens=9, seed=seed) for seed in range(3)]


def test_ranks_are_those_of_the_records(model: GatedModel) -> None:
    found = routing_diagnostics(model, BATCHES)
    counts = []
    model.eval()
    for batch in BATCHES:
        model(**batch)
        counts.append((records_of(model.graph_module)[0].gate > 0).sum(-1))
    counts_all = torch.cat(counts).double()
    assert found.ranks.mean == pytest.approx(float(counts_all.mean()))
    assert list(found.site_ranks.values()) == pytest.approx(counts_all.mean(0).tolist())
    assert found.usage.shape == (len(site_names(model.graph_module)), 8)
    assert found.usage.sum(-1) == pytest.approx(counts_all.mean(0).numpy())
    assert 0 < found.router_share < 1
    assert set(found.layer_ranks) >= {"bert.encoder.layer.0", "bert.encoder.layer.1"}


def test_the_models_mode_survives(model: GatedModel) -> None:
    model.train()
    routing_diagnostics(model, BATCHES)
    assert model.training
    assert routers_of(model.graph_module)[0].training


def test_same_view_is_stable_and_same_group_does_not_diverge(model: GatedModel) -> None:
    assert stability(model, BATCHES, BATCHES) == 1.0
    other = [tiny_inputs("bert", batch=4, tokens=9, seed=9 + seed) for seed in range(3)]
    assert stability(model, BATCHES, other) < 1.0
    pairs = divergence(model, {"a": BATCHES, "b": BATCHES, "c": other})
    assert pairs["a", "b"] == pytest.approx(0.0, abs=1e-12)
    assert pairs["a", "c"] > 0


def test_a_router_that_cannot_choose_is_reported_as_constant(model: GatedModel) -> None:
    import copy

    stuck = copy.deepcopy(model)
    with torch.no_grad():
        routers_of(stuck.graph_module)[0].heads.weight.zero_()
    found = routing_diagnostics(stuck, BATCHES)
    assert found.collapsed == 1.0
    assert found.collapse_kinds == {"constant": 3}


def test_nothing_to_diagnose_and_unequal_views_are_refused(model: GatedModel) -> None:
    with pytest.raises(InputError, match="no batches"):
        routing_diagnostics(model, [])
    with pytest.raises(InputError, match="12 and 4 examples"):
        stability(model, BATCHES, BATCHES[:1])
