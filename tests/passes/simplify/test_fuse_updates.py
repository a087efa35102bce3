"""FuseUpdates: a layer and the gated update on top of it as one operator, for the same numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx

from gatefx.models.configs.ccm import CCM
from gatefx.models.configs.tspeft import TSPEFT
from gatefx.passes.compact.ranks import CompactRanks
from gatefx.passes.compact.updates import SkipUpdates
from gatefx.passes.gate.update_threshold import InsertUpdateThresholds
from gatefx.passes.harden.freeze import FreezeRegularization
from gatefx.passes.harden.rank_router import HardenRankRouters
from gatefx.passes.harden.update_threshold import HardenUpdateThresholds
from gatefx.passes.pipeline import Pipeline
from gatefx.passes.simplify.fuse_updates import FuseUpdates

SITES = ("first", "second")


@pytest.fixture
def ranks(routed: Any) -> Any:
    def make(**given: Any) -> fx.GraphModule:
        passes = (FreezeRegularization(), HardenRankRouters(2.0, "fixed", (1, 2, 3, 4)), CompactRanks(SITES))
        return Pipeline(passes)(routed(CCM(d_router=8), **given)).graph_module

    return make


@pytest.fixture
def tokens(adapted: Any) -> Any:
    def make(**given: Any) -> fx.GraphModule:
        gated = InsertUpdateThresholds(TSPEFT())(adapted(**given)).graph_module.eval()
        passes = (FreezeRegularization(), HardenUpdateThresholds(0.3), SkipUpdates())
        return Pipeline(passes)(gated).graph_module

    return make


@pytest.mark.parametrize(("form", "name"), [("ranks", "gated"), ("tokens", "token_gated")])
def test_layer_and_update_become_one_operator(
    form: str, name: str, request: pytest.FixtureRequest, checked: Any, inputs: Any
) -> None:
    graph = request.getfixturevalue(form)(dtype=torch.float64)
    result = checked(FuseUpdates(), graph)

    report = result.reports[0]
    assert report.fired == SITES
    assert report.exactness == "exact"
    assert report.op_changes == {
        f"{name}_linear.default": 2,
        f"{name}_lora.default": -2,
        "linear.default": -2,
    }
    for batch, length in ((1, 1), (3, 5)):
        given = inputs(batch, length, seed=batch, dtype=torch.float64).values()
        # The same composition of the same operators.
        assert torch.equal(result.graph_module(*given)["logits"], graph(*given)["logits"])


def _base(graph: fx.GraphModule) -> fx.Node:
    (first, *_) = graph.graph.find_nodes(op="call_function", target=torch.ops.gatefx.gated_lora.default)
    layer = first.args[0]
    assert isinstance(layer, fx.Node)
    return layer


def no_bias(graph: fx.GraphModule) -> None:
    layer = _base(graph)
    layer.args = layer.args[:2]


def another_input(graph: fx.GraphModule) -> None:
    layer = _base(graph)
    with graph.graph.inserting_before(layer):
        other = graph.graph.call_function(torch.ops.aten.neg.default, (layer.args[0],))
        other.meta = dict(layer.args[0].meta)  # type: ignore[union-attr]
    layer.replace_input_with(layer.args[0], other)  # type: ignore[arg-type]


def another_reader(graph: fx.GraphModule) -> None:
    layer = _base(graph)
    update = next(iter(layer.users))
    with graph.graph.inserting_after(update):
        total = graph.graph.call_function(torch.ops.aten.add.Tensor, (update, layer))
        total.meta = dict(update.meta)
    update.replace_all_uses_with(total, delete_user_cb=lambda user: user is not total)


def no_layer(graph: fx.GraphModule) -> None:
    layer = _base(graph)
    update = next(iter(layer.users))
    with graph.graph.inserting_after(layer):
        turned = graph.graph.call_function(torch.ops.aten.neg.default, (layer,))
        turned.meta = dict(layer.meta)
    update.replace_input_with(layer, turned)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (no_bias, "no bias"),
        (another_input, "another input"),
        (another_reader, "something besides the adapter"),
        (no_layer, "no linear layer's answer"),
    ],
)
def test_what_is_no_layer_with_its_update_stays(ranks: Any, checked: Any, change: Any, reason: str) -> None:
    graph = ranks()
    change(graph)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    result = checked(FuseUpdates(), graph)

    assert result.reports[0].fired == ("second",)
    (declined,) = result.reports[0].declined
    assert declined.where == "first"
    assert reason in declined.reason


def test_nothing_to_fuse_is_the_same_object(capture_plain: Any) -> None:
    graph = capture_plain()
    assert FuseUpdates()(graph).graph_module is graph
