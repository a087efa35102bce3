"""PackLayers: constant weights of fused and routed layers as panels, for the same numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx

from gatefx.models.configs.ccm import CCM
from gatefx.passes.compact.ranks import CompactRanks
from gatefx.passes.harden.freeze import FreezeRegularization
from gatefx.passes.harden.rank_router import HardenRankRouters
from gatefx.passes.lower.pack_layers import PackLayers
from gatefx.passes.pipeline import Pipeline
from gatefx.passes.simplify.fuse_updates import FuseUpdates

SITES = ("first", "second")


@pytest.fixture
def fused(routed: Any) -> Any:
    def make(**given: Any) -> fx.GraphModule:
        passes = (
            FreezeRegularization(),
            HardenRankRouters(2.0, "fixed", (1, 2, 3, 4)),
            CompactRanks(SITES),
            FuseUpdates(),
        )
        return Pipeline(passes)(routed(CCM(d_router=8), **given)).graph_module

    return make


def test_layers_read_panels(fused: Any, checked: Any, inputs: Any) -> None:
    graph = fused(dtype=torch.float64)
    result = checked(PackLayers(), graph)

    report = result.reports[0]
    assert report.fired == SITES
    assert report.exactness == "exact"
    assert report.op_changes == {"gated_linear.default": -2, "packed_gated_linear.default": 2}
    read = {str(node.target) for node in result.graph_module.graph.nodes if node.op == "get_attr"}
    assert {f"{site}.{name}_packed" for site in SITES for name in ("weight", "bias")} <= read
    assert not {f"{site}.weight" for site in SITES} & read
    for batch, length in ((1, 1), (3, 5)):
        given = inputs(batch, length, seed=batch, dtype=torch.float64).values()
        expected = graph(*given)["logits"]
        torch.testing.assert_close(result.graph_module(*given)["logits"], expected, rtol=0, atol=1e-12)


def test_the_graph_given_keeps_its_weights(fused: Any) -> None:
    graph = fused()
    before = {name: value.clone() for name, value in graph.state_dict().items()}
    PackLayers()(graph)
    assert graph.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in graph.state_dict().items())


def test_half_precision_and_computed_weights_stay(fused: Any, checked: Any) -> None:
    half = fused(dtype=torch.bfloat16)
    assert checked(PackLayers(), half).graph_module is half

    graph = fused()
    layer = graph.graph.find_nodes(op="call_function", target=torch.ops.gatefx.gated_linear.default)[0]
    weight = layer.args[1]
    with graph.graph.inserting_before(layer):
        turned = graph.graph.call_function(torch.ops.aten.neg.default, (weight,))
        turned.meta = dict(weight.meta)
    layer.replace_input_with(weight, turned)
    graph.recompile()
    report = checked(PackLayers(), graph).reports[0]
    assert report.fired == ("second",)
    assert "computed" in report.declined[0].reason


def test_nothing_to_pack_is_the_same_object(capture_plain: Any) -> None:
    graph = capture_plain()
    assert PackLayers()(graph).graph_module is graph
