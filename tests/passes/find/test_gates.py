"""Which row of which router gates which site."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx

from gatefx.config import CCM
from gatefx.errors import PassError
from gatefx.passes.find.adapters import find_sites
from gatefx.passes.find.gates import gate_source, gated_sites

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
