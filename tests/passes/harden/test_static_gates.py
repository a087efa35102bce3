"""FreezeStaticGates: a decided gate leaves, with the directions it shut."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gatefx.passes.find.adapters import find_sites
from gatefx.passes.graph.canonical import canonical_text
from gatefx.passes.harden.static_gates import FreezeStaticGates, open_every_gate

FIRST, SECOND = "first", "second"


def test_open_gates_are_the_plain_adapters_graph_and_bits(adapted: Any, routed: Any, checked: Any, inputs: Any) -> None:
    gated = routed()
    opened = checked(open_every_gate(gated), gated).graph_module

    plain = adapted()
    assert canonical_text(opened) == canonical_text(plain)
    plain.load_state_dict(opened.state_dict())
    given = inputs(batch=5, tokens=8).values()
    assert torch.equal(opened(*given)["logits"], plain(*given)["logits"])


def test_a_site_keeps_the_listed_directions(routed: Any, checked: Any, inputs: Any, tolerance: Any) -> None:
    graph = routed(dtype=torch.float64)
    result = checked(FreezeStaticGates(((FIRST, (2, 0)), (SECOND, (0, 1, 2)))), graph)

    sites = {site.name: site for site in find_sites(result.graph_module)[0]}
    assert (sites[FIRST].rank, sites[SECOND].rank) == (2, 3)
    assert all(site.gate is None for site in sites.values())
    expected = open_every_gate(graph)(graph).graph_module
    state = {name: value.clone() for name, value in expected.state_dict().items()}
    state["first.lora_B.default.weight"][:, [1, 3]] = 0
    given = inputs(batch=4, dtype=torch.float64).values()
    wanted = torch.func.functional_call(expected, state, tuple(given))["logits"]
    torch.testing.assert_close(result.graph_module(*given)["logits"], wanted, rtol=0, atol=tolerance[torch.float64])


def test_other_sites_keep_their_gates(routed: Any, checked: Any) -> None:
    result = checked(FreezeStaticGates(((FIRST, (0, 1, 2, 3)),)), routed())

    assert {site.name: site.gate is None for site in find_sites(result.graph_module)[0]} == {FIRST: True, SECOND: False}
    assert result.reports[0].fired == (FIRST,)


@pytest.mark.parametrize("active", [(), (("nonsense", (0,)),)])
def test_nothing_named_is_the_same_object(routed: Any, checked: Any, active: Any) -> None:
    graph = routed()

    assert checked(FreezeStaticGates(active), graph).graph_module is graph


def test_a_site_that_keeps_nothing_is_the_base(routed: Any, capture_plain: Any, checked: Any, inputs: Any) -> None:
    graph = routed()
    shut = checked(FreezeStaticGates(((FIRST, ()), (SECOND, ()))), graph).graph_module
    base = capture_plain()
    base.load_state_dict({name: value for name, value in graph.state_dict().items() if name in base.state_dict()})

    given = inputs().values()
    assert torch.equal(shut(*given)["logits"], base(*given)["logits"])
