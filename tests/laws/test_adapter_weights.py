"""Laws of weighted adapters on real architectures, in float64."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import fx, nn

from gatefx.models.tiny import tiny, tiny_inputs
from gatefx.passes.compact.sites import DropSites
from gatefx.passes.find.adapter_weights import weights_by_name
from gatefx.passes.find.adapters import find_sites
from gatefx.passes.gate.adapter_weight import InsertAdapterWeights
from gatefx.passes.gate.lora import AttachLora
from gatefx.passes.graph.capture import capture
from gatefx.passes.graph.signature import signature_of
from gatefx.passes.harden.adapter_weight import HardenAdapterWeights
from gatefx.passes.harden.freeze import FreezeRegularization

from ..sampling import rest_slow

FAMILIES = ["bert", "gpt2", "vit", "t5"]


@cache
def graphs(family: str) -> tuple[fx.GraphModule, fx.GraphModule]:
    """The same weights as plain adapters and as weighted ones."""
    torch.manual_seed(0)
    base = capture(tiny(family).double(), inputs(family, 3, 6, 0)).graph_module
    base = FreezeRegularization()(base.eval()).graph_module
    plain = AttachLora(3, 6.0, 0.0, "all-linear")(base).graph_module
    for name, parameter in plain.named_parameters():
        if "_B.default" in name:
            nn.init.normal_(parameter, std=0.3)
    return plain, InsertAdapterWeights()(plain, verify=True).graph_module.eval()


def inputs(family: str, batch: int, tokens: int, seed: int) -> dict[str, Any]:
    found = tiny_inputs(family, batch=batch, tokens=tokens, seed=seed)
    return {name: value.double() if value.is_floating_point() else value for name, value in found.items()}


def answers(graph: fx.GraphModule, given: dict[str, Any]) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = graph(*signature_of(graph).arrange(given))
    return found


@pytest.mark.parametrize("family", rest_slow(FAMILIES, 3))
def test_weights_of_one_are_plain_adapters_and_dropped_ones_are_zero(family: str, tolerance: Any) -> None:
    plain, weighted = graphs(family)
    weights = weights_by_name(weighted)
    gone = tuple(weights)[::2]
    masked = HardenAdapterWeights(gone)(weighted, verify=True).graph_module
    dropped = DropSites(gone)(masked, verify=True).graph_module

    assert {site.name for site in find_sites(dropped)[0]} == set(weights) - set(gone)
    for batch, tokens, seed in ((1, 2, 1), (4, 9, 2)):
        given = inputs(family, batch, tokens, seed)
        whole = answers(plain, given)
        assert all(torch.equal(value, whole[name]) for name, value in answers(weighted, given).items())
        for name in gone:
            weights[name].omega.zero_()
        zeroed, meaning = answers(weighted, given), answers(masked, given)
        for name in gone:
            weights[name].omega.fill_(1.0)
        for name, value in answers(dropped, given).items():
            torch.testing.assert_close(value, zeroed[name], rtol=0, atol=tolerance[torch.float64])
            assert torch.equal(meaning[name], zeroed[name])
        assert any(not torch.allclose(zeroed[name], value) for name, value in whole.items())
