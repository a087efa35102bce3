"""EliminateDeadCode: what no output needs leaves, inputs stay."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gatefx.passes.graph.canonical import canonical_text
from gatefx.passes.graph.edit import own_module
from gatefx.passes.simplify.dead_code import EliminateDeadCode


def test_dead_nodes_and_their_modules_leave(capture_plain: Any) -> None:
    graph = capture_plain()
    before = canonical_text(graph)
    x = graph.graph.find_nodes(op="placeholder")[0]
    own_module(graph, "extra", nn.Dropout())
    with graph.graph.inserting_before(graph.graph.output_node()):
        dead = graph.graph.call_module("extra", (x,))
        deader = graph.graph.call_function(torch.ops.aten.sin.default, (dead,))
    for node in (dead, deader):
        node.meta.update(x.meta)

    result = EliminateDeadCode()(graph)

    assert canonical_text(result.graph_module) == before
    assert set(result.reports[0].fired) == {dead.name, deader.name}
    assert "extra" not in dict(result.graph_module.named_modules())
    assert "extra" in dict(graph.named_modules())


def test_a_live_graph_is_the_same_object(capture_plain: Any, checked: Any) -> None:
    graph = capture_plain()

    assert checked(EliminateDeadCode(), graph).graph_module is graph


def test_inputs_that_nothing_reads_stay(capture_plain: Any, checked: Any) -> None:
    class OnlyX(nn.Module):
        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            return x * 2

    graph = capture_plain(OnlyX())

    checked(EliminateDeadCode(), graph)
    assert [node.target for node in graph.graph.find_nodes(op="placeholder")] == ["x", "attention_mask"]


def test_a_dead_node_passes_verification(capture_plain: Any) -> None:
    """The canonical text shows live nodes only, so removing dead ones is a change that the text does not show."""
    graph = capture_plain()
    x = graph.graph.find_nodes(op="placeholder")[0]
    with graph.graph.inserting_before(graph.graph.output_node()):
        graph.graph.call_function(torch.ops.aten.sin.default, (x,)).meta.update(x.meta)

    assert len(EliminateDeadCode()(graph, verify=True).reports[0].fired) == 1
