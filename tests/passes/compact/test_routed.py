"""RouteUpdates: each token through one of two weights, for the same numbers as the masked graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatefx.errors import PassError
from gatefx.models.configs.gatera import GateRA
from gatefx.models.tiny import tiny_inputs
from gatefx.passes.compact.routed import RouteUpdates
from gatefx.passes.find.modulations import find_modulated
from gatefx.passes.gate.hira import AttachHira
from gatefx.passes.gate.modulation import InsertModulation
from gatefx.passes.graph.signature import signature_of
from gatefx.passes.harden.freeze import FreezeRegularization
from gatefx.passes.harden.modulation import LEVEL, HardenModulations, KeepModulations
from gatefx.passes.pipeline import Pipeline

UPDATES = ["hira", "lora"]
BEFORE = ("FreezeRegularization", "HardenModulations")


def routed_graph(*sites: str) -> Pipeline:
    return Pipeline((RouteUpdates(sites or None),), assumes=BEFORE)


@pytest.fixture
def hardened(modulated: Any) -> Any:
    def make(update: str, level: float = 0.0, **given: Any) -> Any:
        passes = (FreezeRegularization(), HardenModulations(level))
        return Pipeline(passes)(modulated(update, **given)).graph_module

    return make


def test_the_masked_hira_update_becomes_one_operator(hardened: Any, checked: Any) -> None:
    report = checked(routed_graph(), hardened("hira")).reports[0]

    assert report.fired == ("first", "second")
    assert report.exactness == "exact"
    assert report.op_changes == {
        "add.Tensor": -2,
        "linear.default": -4,
        "mm.default": -2,
        "mul.Tensor": -4,
        "routed_linear.default": 2,
        "to.dtype": -2,
        "unsqueeze.default": -2,
    }


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("level", [-1e6, -0.7, 0.0, 1.5, 1e6])
def test_it_equals_the_masked_graph(
    hardened: Any, checked: Any, inputs: Any, tolerance: Any, update: str, dtype: torch.dtype, level: float
) -> None:
    graph = hardened(update, level, dtype=dtype)
    routed = checked(routed_graph(), graph).graph_module

    for batch, tokens in ((1, 1), (3, 5), (6, 2)):
        values = inputs(batch, tokens, seed=batch, dtype=dtype).values()
        torch.testing.assert_close(routed(*values)["logits"], graph(*values)["logits"], rtol=0, atol=tolerance[dtype])


def test_any_batch_and_level(hardened: Any, inputs: Any) -> None:
    graph = hardened("hira", dtype=torch.float64)
    routed = routed_graph()(graph).graph_module

    @settings(max_examples=20, deadline=None, derandomize=True)
    @given(batch=st.integers(1, 5), tokens=st.integers(1, 9), level=st.floats(-3, 3), seed=st.integers(0, 99))
    def law(batch: int, tokens: int, level: float, seed: int) -> None:
        getattr(graph, LEVEL).fill_(level)
        values = inputs(batch, tokens, seed=seed, dtype=torch.float64).values()
        torch.testing.assert_close(routed(*values)["logits"], graph(*values)["logits"], rtol=0, atol=1e-10)

    law()


def test_the_two_weights(hardened: Any) -> None:
    graph = hardened("hira", dtype=torch.float64)
    weights = dict(routed_graph()(graph).graph_module.named_parameters())
    given = dict(graph.named_parameters())

    w0, a, b = (given[f"first.{name}"] for name in ("weight", "hira_A.default.weight", "hira_B.default.weight"))
    torch.testing.assert_close(weights["first.updated_weight"], w0 + w0 * (b @ a), rtol=0, atol=1e-12)
    assert weights["first.weight"] is w0, "the layer's own weight is shared, not copied"
    assert not [name for name in weights if "hira" in name]


def test_both_graphs_read_one_level(hardened: Any, inputs: Any) -> None:
    graph = hardened("hira")
    routed = routed_graph()(graph).graph_module
    values = inputs(6, 8).values()
    before = routed(*values)["logits"]

    getattr(graph, LEVEL).fill_(1.0)

    after = routed(*values)["logits"]
    assert not torch.equal(after, before)
    torch.testing.assert_close(after, graph(*values)["logits"], rtol=0, atol=1e-5)


def test_named_sites_alone_are_routed(hardened: Any, checked: Any) -> None:
    result = checked(routed_graph("second"), hardened("lora"))

    assert result.reports[0].fired == ("second",)
    assert [item.site.name for item in find_modulated(result.graph_module)] == ["first"]


def test_sites_with_rank_gates_stay_masked_and_say_so(routed: Any, checked: Any) -> None:
    graph = InsertModulation(GateRA(update="lora"))(routed()).graph_module.eval()
    hard = Pipeline((HardenModulations(0.0),), assumes=BEFORE[:1])(graph).graph_module
    result = checked(routed_graph(), hard)

    assert result.graph_module is hard
    assert {d.reason for d in result.reports[0].declined} == {
        "its ranks are gated per example, so its update is no single weight; it stays masked"
    }


@pytest.mark.parametrize("update", UPDATES)
def test_a_second_gate_on_the_update_keeps_it_masked(hardened: Any, checked: Any, inputs: Any, update: str) -> None:
    hard = hardened(update)
    item = find_modulated(hard)[0]
    with hard.graph.inserting_after(item.product):
        twice = hard.graph.call_function(torch.ops.aten.mul.Tensor, (item.product, item.product.args[1]))
        twice.meta.update(item.product.meta)
    item.site.add.replace_input_with(item.product, twice)
    hard.recompile()
    result = checked(routed_graph(), hard)

    assert result.reports[0].fired == ("second",)
    assert "another gate multiplies its update too; it stays masked" in {d.reason for d in result.reports[0].declined}
    values = inputs().values()
    torch.testing.assert_close(result.graph_module(*values)["logits"], hard(*values)["logits"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("update", UPDATES)
def test_soft_and_training_gates_are_declined(modulated: Any, checked: Any, update: str) -> None:
    trained = modulated(update)
    for graph in (trained, Pipeline((KeepModulations(),), assumes=BEFORE[:1])(trained).graph_module):
        result = checked(routed_graph(), graph)
        assert result.graph_module is graph
        assert {d.reason for d in result.reports[0].declined} == {"its gate is soft or in training; it stays masked"}


def test_conv1d_s_weights_are_turned(captured_family: Any, checked: Any, tolerance: Any) -> None:
    model, captured = captured_family("gpt2")
    graph = AttachHira(4, 0.0, ("c_attn", "c_proj"))(captured.graph_module).graph_module
    graph = InsertModulation(GateRA())(graph).graph_module.eval()
    for name, parameter in graph.named_parameters():
        if ".hira_B." in name or name.startswith("modulation_"):
            torch.nn.init.normal_(parameter, std=0.5)
    hard = Pipeline((FreezeRegularization(), HardenModulations(0.0)))(graph).graph_module
    result = checked(routed_graph(), hard).graph_module

    values = signature_of(graph).arrange(tiny_inputs(model, batch=3, tokens=9))
    torch.testing.assert_close(
        result(*values)["logits"], hard(*values)["logits"], rtol=0, atol=10 * tolerance[torch.float32]
    )


def test_it_must_follow_hardening() -> None:
    with pytest.raises(PassError, match="RouteUpdates must run after HardenModulations"):
        Pipeline((FreezeRegularization(), RouteUpdates()))
