"""Modulated sites: which gate multiplies which update, in every form that a gate takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gatefx.models.configs.gatera import GateRA
from gatefx.models.modulation import HardModulation, Modulation, SoftModulation
from gatefx.passes.find.adapters import AdapterSite
from gatefx.passes.find.hira import HiraSite
from gatefx.passes.find.modulations import find_modulated, modulations_of, update_sites
from gatefx.passes.gate.hira import AttachHira
from gatefx.passes.gate.lora import AttachLora
from gatefx.passes.gate.modulation import InsertModulation
from gatefx.passes.harden.modulation import HardenModulations, KeepModulations
from gatefx.passes.pipeline import Pipeline


@pytest.mark.parametrize("update", ["hira", "lora"])
@pytest.mark.parametrize(
    ("item", "kind"),
    [(None, Modulation), (HardenModulations(0.0), HardModulation), (KeepModulations(), SoftModulation)],
)
def test_every_form_is_found_at_its_site(modulated: Any, update: str, item: Any, kind: type) -> None:
    graph = modulated(update)
    if item is not None:
        graph = Pipeline((item,), assumes=("FreezeRegularization",))(graph).graph_module
    found = find_modulated(graph)

    assert [one.site.name for one in found] == ["first", "second"]
    assert [type(one.module) for one in found] == [kind, kind]
    assert all(one.product in one.site.factors and one.site.update is one.product for one in found)
    assert len(modulations_of(graph)) == (2 if kind is Modulation else 0)


def test_both_kinds_of_adapter_in_one_graph(capture_plain: Any) -> None:
    graph = AttachHira(4, 0.0, ("second",))(AttachLora(4, 8.0, 0.0, ("first",))(capture_plain()).graph_module)
    sites = update_sites(graph.graph_module)
    gated = InsertModulation(GateRA())(graph.graph_module).graph_module

    assert [type(site) for site in sites] == [AdapterSite, HiraSite]
    assert [one.gate.target for one in find_modulated(gated)] == ["modulation_0", "modulation_1"]


def test_other_factors_are_not_modulations(modulated: Any) -> None:
    graph = modulated("lora", gated=False)
    site = update_sites(graph)[0]
    with graph.graph.inserting_before(site.add):
        factor = graph.graph.call_function(torch.ops.aten.sum.dim_IntList, (site.x, [-1], True))
        factor.meta["val"] = site.x.meta["val"].sum(-1, keepdim=True)
        product = graph.graph.call_function(torch.ops.aten.mul.Tensor, (site.scaled, factor))
        product.meta["val"] = site.scaled.meta["val"]
    site.add.replace_input_with(site.scaled, product)

    assert update_sites(graph)[0].factors == (product,)
    assert find_modulated(graph) == ()
