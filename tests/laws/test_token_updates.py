"""Laws of token-selective updates on real architectures, on random shapes and thresholds, in float64."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import fx, nn

from gatefx.models.configs.tspeft import TSPEFT
from gatefx.models.tiny import tiny, tiny_inputs
from gatefx.models.update_threshold import UpdateThreshold
from gatefx.passes.compact.updates import SkipUpdates
from gatefx.passes.find.thresholds import thresholds_of
from gatefx.passes.gate.lora import AttachLora
from gatefx.passes.gate.update_threshold import InsertUpdateThresholds
from gatefx.passes.graph.capture import capture
from gatefx.passes.graph.signature import signature_of
from gatefx.passes.harden.freeze import FreezeRegularization
from gatefx.passes.harden.update_threshold import LEVEL, HardenUpdateThresholds
from gatefx.passes.pipeline import Pipeline

from ..sampling import rest_slow

FAMILIES = ["bert", "gpt2", "vit", "t5"]
LEVELS = [0.0, 0.2, 0.5, 1.0, torch.inf]


@cache
def graphs(family: str) -> dict[str, fx.GraphModule]:
    """The same weights as base, plain adapters, masked and skipping graph; every τ is 0, so the level decides."""
    torch.manual_seed(0)
    base = capture(tiny(family).double(), inputs(family, 3, 6, 0)).graph_module
    base = FreezeRegularization()(base.eval()).graph_module
    plain = AttachLora(3, 6.0, 0.0, "all-linear")(base).graph_module
    for name, parameter in plain.named_parameters():
        if "_B.default" in name:
            nn.init.normal_(parameter, std=0.2)
    gated = InsertUpdateThresholds(TSPEFT())(plain).graph_module.eval()
    masked = Pipeline((FreezeRegularization(), HardenUpdateThresholds()))(gated, verify=True).graph_module
    after = Pipeline((SkipUpdates(),), assumes=("HardenUpdateThresholds",))
    return {"base": base, "plain": plain, "gated": gated, "masked": masked, "skipping": after(masked).graph_module}


def inputs(family: str, batch: int, tokens: int, seed: int) -> dict[str, Any]:
    found = tiny_inputs(family, batch=batch, tokens=tokens, seed=seed)
    return {name: value.double() if value.is_floating_point() else value for name, value in found.items()}


def answers(graph: fx.GraphModule, given: dict[str, Any]) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        found: dict[str, torch.Tensor] = graph(*signature_of(graph).arrange(given))
    return found


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("family", rest_slow(FAMILIES, 3))
def test_skipping_equals_masked_at_every_level(family: str) -> None:
    found = graphs(family)
    assert [n for n in found["skipping"].graph.nodes if "token_gated_lora" in str(n.target)]
    assert not [n for n in found["skipping"].graph.nodes if n.op == "call_module"]
    level, differ = getattr(found["masked"], LEVEL), set[bool]()
    try:
        for value in LEVELS:
            level.fill_(value)
            for batch, tokens, seed in ((1, 2, 1), (4, 9, 2)):
                given = inputs(family, batch, tokens, seed)
                wanted = answers(found["masked"], given)
                for name, answer in answers(found["skipping"], given).items():
                    torch.testing.assert_close(answer, wanted[name], rtol=0, atol=1e-10)
                differ.add(equal(wanted, answers(found["plain"], given)))
    finally:
        level.fill_(0.0)
    assert differ == {True, False}, "the levels must matter, or the test shows nothing"


@pytest.mark.parametrize("family", rest_slow(FAMILIES, 3))
def test_zero_is_the_plain_adapter_and_infinity_the_base_bit_for_bit(family: str) -> None:
    found = graphs(family)
    given = inputs(family, 3, 7, 5)
    level, gates = getattr(found["masked"], LEVEL), thresholds_of(found["gated"]).values()
    try:
        for value, other in ((0.0, "plain"), (torch.inf, "base")):
            level.fill_(value)
            for gate in gates:
                gate.level.fill_(value)
            wanted = answers(found[other], given)
            assert equal(answers(found["gated"], given), wanted)
            assert equal(answers(found["masked"], given), wanted)
            for name, answer in answers(found["skipping"], given).items():
                torch.testing.assert_close(answer, wanted[name], rtol=0, atol=1e-10)
    finally:
        level.fill_(0.0)
        for gate in gates:
            gate.level.fill_(0.0)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 9), st.floats(0, 3), st.floats(0, 3), st.integers(0, 9999))
@example(1, 1, 0.0, 0.0, 492)  # an update whose size over the smallest number is beyond all numbers
def test_a_higher_threshold_never_updates_a_token_more(
    batch: int, tokens: int, first: float, second: float, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    update, base = (torch.randn(batch, tokens, 6, generator=random, dtype=torch.float64) for _ in range(2))
    base[0, 0] = 0
    taken = []
    for tau in sorted((first, second)):
        gate = UpdateThreshold(TSPEFT(), budget=None).eval()
        gate.tau.fill_(tau)
        answer = gate(update, base)
        assert gate.record is not None
        taken.append(gate.record.taken)
        assert torch.equal(answer, torch.where(taken[-1].unsqueeze(-1), update, 0.0))
        assert torch.isfinite(gate.record.ratio).all()
    assert not (taken[1] & ~taken[0]).any()


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 5), st.integers(1, 12), st.floats(0, 2), st.integers(0, 99))
def test_any_shape_and_level(batch: int, tokens: int, value: float, seed: int) -> None:
    found = graphs("bert")
    level = getattr(found["masked"], LEVEL)
    level.fill_(value)
    try:
        given_inputs = inputs("bert", batch, tokens, seed)
        wanted = answers(found["masked"], given_inputs)
        for name, answer in answers(found["skipping"], given_inputs).items():
            torch.testing.assert_close(answer, wanted[name], rtol=0, atol=1e-10)
    finally:
        level.fill_(0.0)
