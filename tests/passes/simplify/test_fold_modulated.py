"""FoldModulated: updates that are one weight, and the refusal of those that are none."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gatefx.errors import MethodError
from gatefx.models.tiny import tiny_inputs
from gatefx.passes.find.modulations import modulations_of, update_sites
from gatefx.passes.gate.hira import AttachHira
from gatefx.passes.graph.signature import signature_of
from gatefx.passes.harden.modulation import HardenModulations, KeepModulations
from gatefx.passes.pipeline import Pipeline
from gatefx.passes.simplify.fold_modulated import FoldModulated
from gatefx.passes.simplify.hira_weight import PrecomputeHira

UPDATES = ["hira", "lora"]
FROZEN = ("FreezeRegularization",)


def constant(graph: Any, biases: tuple[float, ...] = (0.3, -1.0)) -> Any:
    for gate, bias in zip(modulations_of(graph), biases, strict=True):
        gate.score.weight.data.zero_()
        gate.score.bias.data.fill_(bias)
    return graph


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("soft", [False, True])
def test_a_constant_gate_folds(
    modulated: Any, checked: Any, inputs: Any, tolerance: Any, update: str, soft: bool
) -> None:
    graph = constant(modulated(update, dtype=torch.float64))
    if soft:
        graph = Pipeline((KeepModulations(),), assumes=FROZEN)(graph).graph_module
    result = checked(FoldModulated(), graph)

    assert result.reports[0].fired == ("first", "second")
    assert update_sites(result.graph_module) == ()
    given = inputs(dtype=torch.float64).values()
    torch.testing.assert_close(
        result.graph_module(*given)["logits"], graph(*given)["logits"], rtol=0, atol=tolerance[torch.float64]
    )


def test_a_gate_that_is_always_zero_folds_to_the_base(modulated: Any, capture_plain: Any, inputs: Any) -> None:
    graph = constant(modulated(dtype=torch.float64), (-1e4, -1e4))
    base = capture_plain(dtype=torch.float64)
    base.load_state_dict(graph.state_dict(), strict=False)

    given = inputs(dtype=torch.float64).values()
    folded = FoldModulated()(graph).graph_module
    assert torch.equal(folded(*given)["logits"], base(*given)["logits"])


@pytest.mark.parametrize("update", UPDATES)
def test_a_varying_gate_is_refused_where_it_is_named(modulated: Any, update: str) -> None:
    with pytest.raises(MethodError, match=r"second cannot be merged: its gate g\(x\) varies(.|\n)*optimize"):
        FoldModulated(("second",))(modulated(update))


@pytest.mark.parametrize("update", UPDATES)
def test_varying_gates_are_declined_elsewhere(modulated: Any, checked: Any, update: str) -> None:
    trained = modulated(update)
    for graph in (trained, Pipeline((HardenModulations(0.0),), assumes=FROZEN)(trained).graph_module):
        result = checked(FoldModulated(), graph)
        assert result.graph_module is graph
        assert all("varies from token to token" in d.reason for d in result.reports[0].declined)


def test_plain_hira_folds_and_plain_lora_is_another_pass_s(modulated: Any, checked: Any, inputs: Any) -> None:
    graph = modulated("hira", gated=False, dtype=torch.float64)
    given = inputs(dtype=torch.float64).values()
    result = checked(FoldModulated(), graph).graph_module
    torch.testing.assert_close(result(*given)["logits"], graph(*given)["logits"], rtol=0, atol=1e-10)

    lora = modulated("lora", gated=False)
    assert checked(FoldModulated(), lora).graph_module is lora


def test_dropout_and_other_gates_are_declined(modulated: Any, routed: Any, checked: Any) -> None:
    result = checked(FoldModulated(), modulated(gated=False, dropout=0.3))
    assert {d.reason for d in result.reports[0].declined} == {"its input drops out in training: freeze the graph first"}


@pytest.mark.parametrize("precompute", [False, True])
def test_conv1d_folds_and_precomputes(captured_family: Any, checked: Any, tolerance: Any, precompute: bool) -> None:
    model, captured = captured_family("gpt2")
    graph = AttachHira(4, 0.0, ("c_attn", "c_proj"))(captured.graph_module).graph_module
    for name, parameter in graph.named_parameters():
        if ".hira_B." in name:
            torch.nn.init.normal_(parameter, std=0.5)
    result = checked(PrecomputeHira() if precompute else FoldModulated(), graph).graph_module

    given = signature_of(graph).arrange(tiny_inputs(model, batch=3, tokens=9))
    wanted = graph(*given)["logits"]
    assert not torch.allclose(captured.graph_module(*given)["logits"], wanted, atol=1e-2)
    torch.testing.assert_close(result(*given)["logits"], wanted, rtol=0, atol=10 * tolerance[torch.float32])
