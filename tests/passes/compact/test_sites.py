"""DropSites: what is multiplied by zero leaves the graph, with everything that only it used."""

from __future__ import annotations

from typing import Any

import torch

from gatefx.models.configs.ccm import CCM
from gatefx.models.gates import RankRouter
from gatefx.passes.compact.sites import DropSites
from gatefx.passes.find.adapters import find_sites
from gatefx.passes.find.gates import gated_site_names
from gatefx.passes.gate.adapter_weight import InsertAdapterWeights
from gatefx.passes.harden.adapter_weight import HardenAdapterWeights
from gatefx.passes.harden.freeze import FreezeRegularization
from gatefx.passes.pipeline import Pipeline


def test_dropped_equals_zero_and_leaves_nothing_behind(adapted: Any, checked: Any, inputs: Any, tolerance: Any) -> None:
    weighted = InsertAdapterWeights()(adapted(dtype=torch.float64)).graph_module
    masked = Pipeline((FreezeRegularization(), HardenAdapterWeights(("first",))))(weighted).graph_module
    result = checked(DropSites(("first",)), masked)
    graph, given = result.graph_module, inputs(dtype=torch.float64).values()

    assert result.reports[0].fired == ("first",)
    assert "first" not in {site.name for site in find_sites(graph)[0]}
    assert not [name for name in graph.state_dict() if "first.lora" in name or "dropped" in name]
    wanted = masked(*given)["logits"]
    torch.testing.assert_close(graph(*given)["logits"], wanted, rtol=0, atol=tolerance[torch.float64])


def test_every_site_dropped_is_the_base_model(adapted: Any, checked: Any, capture_plain: Any, inputs: Any) -> None:
    graph = adapted()
    names = tuple(site.name for site in find_sites(graph)[0])
    dropped = checked(DropSites(names), graph).graph_module
    base = capture_plain()
    base.load_state_dict(graph.state_dict(), strict=False)
    given = inputs().values()

    assert torch.equal(dropped(*given)["logits"], base(*given)["logits"])
    assert [n.target for n in dropped.graph.nodes if n.op == "call_function"] == [
        n.target for n in base.graph.nodes if n.op == "call_function"
    ]


def test_a_shared_router_gates_the_sites_that_are_left(routed: Any, checked: Any, inputs: Any) -> None:
    graph = routed()
    names = gated_site_names(graph)["rank_router"]
    graph.get_parameter("first.lora_B.default.weight").data.zero_()
    result = checked(DropSites(("first",)), graph).graph_module
    given = inputs().values()
    (router,) = (module for module in result.modules() if isinstance(module, RankRouter))

    assert gated_site_names(result)["rank_router"] == tuple(name for name in names if name != "first")
    assert len(router.site_ranks) == len(names) - 1
    torch.testing.assert_close(result(*given)["logits"], graph(*given)["logits"], rtol=0, atol=1e-6)
    assert router.record is not None
    assert router.record.gate.shape[1] == len(names) - 1
    (untouched,) = (module for module in graph.modules() if isinstance(module, RankRouter))
    assert len(untouched.site_ranks) == len(names)


def test_a_site_s_own_router_goes_with_it(routed: Any, checked: Any) -> None:
    graph = routed(CCM(d_router=8, router_input="site"))
    sites = len(find_sites(graph)[0])
    result = checked(DropSites(("second",)), graph).graph_module

    assert len([module for module in result.modules() if isinstance(module, RankRouter)]) == sites - 1


def test_an_unknown_name_changes_nothing(adapted: Any, checked: Any) -> None:
    graph = adapted()
    assert checked(DropSites(("nowhere",)), graph).graph_module is graph
