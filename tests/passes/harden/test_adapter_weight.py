"""HardenAdapterWeights and OpenAdapterWeights: weights become scales, zeros, or nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import fx

from gatefx.passes.find.adapter_weights import find_weighted, weights_by_name
from gatefx.passes.find.adapters import find_sites
from gatefx.passes.gate.adapter_weight import InsertAdapterWeights
from gatefx.passes.graph.capture import capture
from gatefx.passes.graph.edit import get_tensor
from gatefx.passes.harden.adapter_weight import HardenAdapterWeights, OpenAdapterWeights
from gatefx.passes.harden.freeze import FreezeRegularization
from gatefx.passes.pipeline import Pipeline


@pytest.fixture
def weighted(adapted: Any) -> Any:
    def make(plain: fx.GraphModule | None = None) -> fx.GraphModule:
        return InsertAdapterWeights()(adapted() if plain is None else plain).graph_module.eval()

    return make


def harden(graph: fx.GraphModule, *dropped: str) -> fx.GraphModule:
    return Pipeline((FreezeRegularization(), HardenAdapterWeights(dropped)))(graph, verify=True).graph_module


def test_kept_whole_is_the_plain_adapter_bit_for_bit(weighted: Any, adapted: Any, checked: Any, inputs: Any) -> None:
    plain = adapted()
    given = inputs().values()
    for item in (HardenAdapterWeights(), OpenAdapterWeights()):
        result = checked(item, weighted(plain)).graph_module
        assert find_weighted(result) == ()
        assert torch.equal(result(*given)["logits"], plain(*given)["logits"])


def test_a_weight_becomes_part_of_the_scale(weighted: Any, inputs: Any) -> None:
    graph = weighted()
    weights_by_name(graph)["first"].omega.fill_(-0.25)
    result = harden(graph)
    given = inputs().values()

    scales = {site.name: site.scale for site in find_sites(graph)[0]}
    assert {site.name: site.scale for site in find_sites(result)[0]} == {**scales, "first": -0.25 * scales["first"]}
    torch.testing.assert_close(result(*given)["logits"], graph(*given)["logits"], rtol=0, atol=1e-6)


def test_a_site_without_a_scale_gets_one(inputs: Any, weighted: Any, plain: Any) -> None:
    config = LoraConfig(r=3, lora_alpha=3, target_modules=["first"], init_lora_weights=False)
    graph = weighted(capture(get_peft_model(plain, config), inputs()).graph_module)
    (weight,) = weights_by_name(graph).values()
    weight.omega.fill_(1.5)
    result = harden(graph)
    given = inputs().values()

    (site,) = find_sites(result)[0]
    scale = site.scale if isinstance(site.scale, float) else float(get_tensor(result, str(site.scale.target)))
    assert scale == 1.5
    torch.testing.assert_close(result(*given)["logits"], graph(*given)["logits"], rtol=0, atol=1e-6)


def test_dropped_is_a_weight_of_zero(weighted: Any, checked: Any, inputs: Any) -> None:
    graph = weighted()
    result = checked(HardenAdapterWeights(("second",)), graph).graph_module
    weights_by_name(graph)["second"].omega.zero_()
    given = inputs().values()

    assert torch.equal(result(*given)["logits"], graph(*given)["logits"])
    assert {len(site.factors) for site in find_sites(result)[0] if site.name == "second"} == {1}
    assert {len(site.factors) for site in find_sites(result)[0] if site.name != "second"} == {0}
