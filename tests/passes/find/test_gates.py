"""Which row of which router gates which site."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx, nn

from gatefx.errors import PassError
from gatefx.models.configs.ccm import CCM
from gatefx.passes.find.adapters import find_sites
from gatefx.passes.find.gates import gate_source, gated_sites
from gatefx.passes.gate.lora import AttachLora
from gatefx.passes.gate.rank_router import InsertRankRouter
from gatefx.passes.methods.ccm_schedule import routers_of

aten = torch.ops.aten


def test_sites_come_by_router_and_index(routed: Any) -> None:
    graph: fx.GraphModule = routed()

    found = gated_sites(graph)

    assert {name: [site.name for site in sites] for name, sites in found.items()} == {
        "rank_router": ["first", "second"]
    }
    for sites in found.values():
        assert [gate_source(site)[1] for site in sites] == [0, 1]


def test_a_router_per_site_is_told_apart(routed: Any) -> None:
    found = gated_sites(routed(CCM(router_input="site", d_router=8)))

    assert {name: [site.name for site in sites] for name, sites in found.items()} == {
        "rank_router_0": ["first"],
        "rank_router_1": ["second"],
    }


def test_an_ungated_graph_has_none(adapted: Any) -> None:
    graph = adapted()

    assert gated_sites(graph) == {}
    with pytest.raises(PassError, match="not one row of a router"):
        gate_source(find_sites(graph)[0][0])


def test_a_gate_of_another_form_is_named(routed: Any) -> None:
    graph = routed()
    site = find_sites(graph)[0][0]
    row = site.gate.args[1]
    with graph.graph.inserting_after(row):
        other = graph.graph.call_function(aten.sigmoid.default, (row,))
    other.meta.update(row.meta)
    site.gate.replace_input_with(row, other)

    with pytest.raises(PassError, match="gate of first is not one row"):
        gate_source(find_sites(graph)[0][0])


def test_routers_and_their_sites_come_in_one_order(capture_plain: Any) -> None:
    """Sites that read one state have routers that run in another order than the sites."""
    graph = InsertRankRouter(CCM(router_input="site", d_router=8), 2.0)(
        AttachLora(2, 4.0, 0.0, "all-linear", (("b", 3, 6.0), ("c", 4, 8.0)))(capture_plain(_Three())).graph_module
    ).graph_module

    ranks = [router.max_rank for router in routers_of(graph)]

    assert [site.rank for sites in gated_sites(graph).values() for site in sites] == ranks


class _Three(nn.Module):
    """Three layers over one state."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(12, 6), nn.Linear(12, 6), nn.Linear(12, 6)

    def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.a(x) * self.b(x) + self.c(x) * attention_mask.unsqueeze(-1)
