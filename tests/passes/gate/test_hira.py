"""AttachHira: a silent (W0 ⊙ B A) x beside every chosen linear, and the sites the finder reads from it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gatefx.models.tiny import tiny_inputs
from gatefx.passes.find.hira import find_hira_sites
from gatefx.passes.gate.hira import AttachHira
from gatefx.passes.graph.capture import capture
from gatefx.passes.graph.edit import get_tensor
from gatefx.passes.graph.signature import signature_of


def hira(graph: Any) -> Any:
    return find_hira_sites(graph)


def test_a_fresh_branch_is_silent(capture_plain: Any, checked: Any, inputs: Any) -> None:
    graph = capture_plain(dtype=torch.float64)
    result = checked(AttachHira(4, 0.0, "all-linear"), graph)

    given = inputs(dtype=torch.float64).values()
    assert torch.equal(result.graph_module(*given)["logits"], graph(*given)["logits"])
    report = result.reports[0]
    assert report.fired == ("first", "second")
    assert report.op_changes == {"add.Tensor": 2, "linear.default": 2, "mm.default": 2, "mul.Tensor": 2}


def test_names_and_start_follow_peft(capture_plain: Any) -> None:
    graph = AttachHira(4, 0.0, ("first",))(capture_plain()).graph_module
    parameters = dict(graph.named_parameters())

    assert {name: tuple(value.shape) for name, value in parameters.items() if "hira" in name} == {
        "first.hira_A.default.weight": (4, 12),
        "first.hira_B.default.weight": (10, 4),
    }
    assert not parameters["first.hira_B.default.weight"].any()
    assert parameters["first.hira_A.default.weight"].any()


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_the_update_is_the_weight_times_b_a(capture_plain: Any, inputs: Any, tolerance: Any, scale: float) -> None:
    plain = capture_plain(dtype=torch.float64)
    graph = AttachHira(4, 0.0, ("second",), scale)(plain).graph_module
    (site,) = hira(graph)
    b = get_tensor(graph, str(site.hira_b.target))
    nn.init.normal_(b)
    w0, a = (get_tensor(graph, str(node.target)) for node in (site.weight, site.hira_a))
    assert site.scale == scale

    given = inputs(dtype=torch.float64).values()
    wanted = capture_plain(dtype=torch.float64)
    wanted.load_state_dict(plain.state_dict())
    get_tensor(wanted, "second.weight").data = (w0 + scale * w0 * (b @ a)).detach()
    torch.testing.assert_close(graph(*given)["logits"], wanted(*given)["logits"], rtol=0, atol=tolerance[torch.float64])


def test_dropout_stands_on_the_branch_alone(modulated: Any, inputs: Any) -> None:
    graph = modulated(gated=False, dropout=0.5)
    site = hira(graph)[0]

    assert site.base.args[0] is site.x
    assert graph.get_submodule("first.hira_dropout.default").p == 0.5


def test_conv1d_weights_are_transposed(captured_family: Any, checked: Any, tolerance: Any) -> None:
    model, captured = captured_family("gpt2")
    graph = checked(AttachHira(4, 0.0, ("c_attn",)), captured.graph_module).graph_module
    sites = hira(graph)

    assert sites
    assert all(site.transposed for site in sites)
    assert [site.d_out for site in sites] == [96] * len(sites)
    given = signature_of(graph).arrange(tiny_inputs(model, batch=3, tokens=9))
    assert torch.equal(graph(*given)["logits"], captured.graph_module(*given)["logits"])


def test_adapted_layers_are_declined(adapted: Any, modulated: Any, checked: Any) -> None:
    for graph in (adapted(), modulated(gated=False)):
        result = checked(AttachHira(3, 0.0, "all-linear"), graph)
        assert result.graph_module is graph
        assert {d.reason for d in result.reports[0].declined} == {"it has an adapter already"}


def test_what_cannot_carry_it_is_declined(capture_plain: Any, checked: Any) -> None:
    result = checked(AttachHira(9, 0.0, ("first", "second"), whole=("first",)), capture_plain())

    assert {d.where: d.reason for d in result.reports[0].declined} == {
        "first": "it is trained whole, which no update of its weight adds to",
        "second": "rank 9 is no smaller than the 8x10 layer",
    }


class Chained(nn.Module):
    """A layer that feeds another directly, and is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        return self.second(self.first(self.first(x))) * attention_mask.unsqueeze(-1)


def test_a_layer_that_feeds_another_feeds_its_branch_too(inputs: Any, checked: Any) -> None:
    graph = capture(Chained(), inputs()).graph_module
    result = checked(AttachHira(4, 0.0, "all-linear"), graph)
    again, second = hira(result.graph_module)[0], hira(result.graph_module)[1]

    assert [(site.name, site.base.args[0] is site.x) for site in (again, second)] == [("first", True), ("second", True)]
    assert {d.where: d.reason for d in result.reports[0].declined} == {"first": "it has an adapter already"}
    assert second.x is not again.base
