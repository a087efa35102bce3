"""SettleModulations: gates that never vary leave the graph, open or shut."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gatefx.passes.find.modulations import find_modulated, update_sites
from gatefx.passes.harden.modulation import HardenModulations
from gatefx.passes.harden.static_modulation import SettleModulations
from gatefx.passes.pipeline import Pipeline

UPDATES = ["hira", "lora"]


@pytest.mark.parametrize("update", UPDATES)
def test_opening_every_gate_leaves_the_plain_adapters(modulated: Any, checked: Any, inputs: Any, update: str) -> None:
    graph = modulated(update)
    plain = modulated(update, gated=False)
    plain.load_state_dict(graph.state_dict(), strict=False)
    result = checked(SettleModulations(), graph)

    assert result.reports[0].op_changes == {"Modulation": -2, "mul.Tensor": -2}
    given = inputs().values()
    assert torch.equal(result.graph_module(*given)["logits"], plain(*given)["logits"])


@pytest.mark.parametrize("update", UPDATES)
def test_a_shut_site_leaves_with_its_adapter(
    modulated: Any, checked: Any, capture_plain: Any, inputs: Any, update: str
) -> None:
    graph = modulated(update)
    base = capture_plain()
    base.load_state_dict(graph.state_dict(), strict=False)
    result = checked(SettleModulations(shut=("first", "second")), graph)

    given = inputs().values()
    assert torch.equal(result.graph_module(*given)["logits"], base(*given)["logits"])
    assert update_sites(result.graph_module) == ()
    assert not [name for name, _ in result.graph_module.named_parameters() if "lora" in name or "hira" in name]


@pytest.mark.parametrize("update", UPDATES)
def test_named_sites_alone_are_settled(modulated: Any, checked: Any, update: str) -> None:
    result = checked(SettleModulations(open=("first",)), modulated(update))

    assert result.reports[0].fired == ("first",)
    assert [item.site.name for item in find_modulated(result.graph_module)] == ["second"]
    graph = modulated(update)
    assert checked(SettleModulations(open=()), graph).graph_module is graph


@pytest.mark.parametrize("update", UPDATES)
def test_hard_gates_are_settled_too(modulated: Any, checked: Any, inputs: Any, update: str) -> None:
    hard = Pipeline((HardenModulations(-1e6),), assumes=("FreezeRegularization",))(modulated(update)).graph_module
    result = checked(SettleModulations(), hard).graph_module

    given = inputs().values()
    assert torch.equal(result(*given)["logits"], hard(*given)["logits"])
    assert find_modulated(result) == ()
