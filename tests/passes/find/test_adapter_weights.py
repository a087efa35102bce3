"""Weighted sites: each adapter with the weight on it, among other gates."""

from __future__ import annotations

from typing import Any

from gatefx.models.configs.gatera import GateRA
from gatefx.passes.find.adapter_weights import adapter_names, find_weighted, weights_by_name
from gatefx.passes.find.adapters import find_sites
from gatefx.passes.gate.adapter_weight import InsertAdapterWeights
from gatefx.passes.gate.modulation import InsertModulation
from gatefx.passes.pipeline import Pipeline


def test_a_graph_without_weights_has_none(adapted: Any) -> None:
    assert find_weighted(adapted()) == ()
    assert weights_by_name(adapted()) == {}


def test_weights_are_found_beside_token_gates_in_either_order(adapted: Any) -> None:
    passes = (InsertAdapterWeights(), InsertModulation(GateRA(update="lora")))
    for order in (passes, passes[::-1]):
        graph = Pipeline(order)(adapted()).graph_module
        found = find_weighted(graph)
        assert [item.site.name for item in found] == ["first", "second"]
        assert [str(item.call.target) for item in found] == ["adapter_weight_0", "adapter_weight_1"]
        assert [item.product in item.site.factors for item in found] == [True, True]
        assert [len(item.site.factors) for item in found] == [2, 2]


def test_adapters_are_named_once_each(adapted: Any) -> None:
    sites = find_sites(adapted())[0]
    assert adapter_names((*sites, *sites)) == ("first", "second")
