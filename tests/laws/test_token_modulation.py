"""Laws of token modulation on real architectures, both kinds of update, in float64."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import fx, nn

from gatefx.models.configs.gatera import GateRA
from gatefx.models.tiny import tiny, tiny_inputs
from gatefx.passes.compact.routed import RouteUpdates
from gatefx.passes.contract import Pass
from gatefx.passes.find.modulations import find_modulated, modulations_of, update_sites
from gatefx.passes.gate.hira import AttachHira
from gatefx.passes.gate.lora import AttachLora
from gatefx.passes.gate.modulation import InsertModulation
from gatefx.passes.graph.capture import capture
from gatefx.passes.graph.signature import signature_of
from gatefx.passes.harden.freeze import FreezeRegularization
from gatefx.passes.harden.modulation import LEVEL, HardenModulations
from gatefx.passes.pipeline import Pipeline
from gatefx.passes.simplify.hira_weight import PrecomputeHira

from ..sampling import rest_slow_rows

FAMILIES = ["bert", "gpt2", "vit", "albert", "t5"]
CASES = rest_slow_rows(
    [(family, kind) for family in FAMILIES for kind in ("hira", "lora") if (family, kind) != ("albert", "lora")], 6
)


@cache
def graphs(family: str, kind: str) -> dict[str, fx.GraphModule]:
    """The same weights as base, plain adapters, gated, masked and routed graph."""
    torch.manual_seed(0)
    base = capture(tiny(family).double(), inputs(family, 3, 6, 0)).graph_module
    base = FreezeRegularization()(base.eval()).graph_module
    attach: Pass = AttachHira(3, 0.0, "all-linear") if kind == "hira" else AttachLora(3, 6.0, 0.0, "all-linear")
    plain = attach(base).graph_module
    for name, parameter in plain.named_parameters():
        if "_B.default" in name:
            nn.init.normal_(parameter, std=0.3)
    gated = InsertModulation(GateRA(update=kind))(plain).graph_module.eval()  # type: ignore[arg-type]  # a test's parameter
    for gate in modulations_of(gated):
        nn.init.normal_(gate.score.weight, std=0.3)
    masked = Pipeline((FreezeRegularization(), HardenModulations(0.0)))(gated, verify=True).graph_module
    after = Pipeline((RouteUpdates(), PrecomputeHira()), assumes=("HardenModulations",))
    return {
        "base": base,
        "plain": plain,
        "gated": gated,
        "masked": masked,
        "routed": after(masked, verify=True).graph_module,
    }


def inputs(family: str, batch: int, tokens: int, seed: int) -> dict[str, Any]:
    found = tiny_inputs(family, batch=batch, tokens=tokens, seed=seed)
    return {name: value.double() if value.is_floating_point() else value for name, value in found.items()}


def answers(graph: fx.GraphModule, given: dict[str, Any]) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = graph(*signature_of(graph).arrange(given))
    return found


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_routed_equals_masked(family: str, kind: str) -> None:
    found = graphs(family, kind)
    sites = update_sites(found["masked"])

    assert sites
    assert len([n for n in found["routed"].graph.nodes if "routed_linear" in str(n.target)]) == len(sites)
    assert find_modulated(found["routed"]) == ()
    for batch, tokens, seed in ((1, 2, 1), (4, 9, 2)):
        given = inputs(family, batch, tokens, seed)
        wanted = answers(found["masked"], given)
        for name, value in answers(found["routed"], given).items():
            torch.testing.assert_close(value, wanted[name], rtol=0, atol=1e-10)
    gated = answers(found["gated"], given)
    assert any(not torch.allclose(gated[name], value) for name, value in wanted.items())


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_every_token_is_the_plain_adapter_and_none_the_base(family: str, kind: str) -> None:
    found = graphs(family, kind)
    given = inputs(family, 3, 7, 5)
    level = getattr(found["masked"], LEVEL)
    try:
        for value, other in ((-torch.inf, "plain"), (torch.inf, "base")):
            level.fill_(value)
            wanted = answers(found[other], given)
            for name, answer in answers(found["masked"], given).items():
                assert torch.equal(answer, wanted[name]), "bit for bit"
            for name, answer in answers(found["routed"], given).items():
                torch.testing.assert_close(answer, wanted[name], rtol=0, atol=1e-10)
    finally:
        level.fill_(0.0)
