"""Equal texts mean equal dataflow, whatever the nodes are called and in which order they were listed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, fx, nn

from gatefx.passes.graph.canonical import canonical_text
from gatefx.passes.graph.capture import capture
from gatefx.passes.graph.edit import copy_graph

aten = torch.ops.aten


class Sum(nn.Module):
    def __init__(self, reverse: bool = False, factor: float = 2.0) -> None:
        super().__init__()
        self.reverse, self.factor = reverse, factor

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if self.reverse:
            b = torch.cos(y)
            a = torch.sin(x)
        else:
            a = torch.sin(x)
            b = torch.cos(y)
        return a + b * self.factor


EXAMPLE = {"x": torch.randn(3, 4), "y": torch.randn(3, 4)}


def text(module: nn.Module) -> str:
    return canonical_text(capture(module, EXAMPLE).graph_module)


def test_listing_order_does_not_matter() -> None:
    assert text(Sum()) == text(Sum(reverse=True))


def test_node_names_do_not_matter() -> None:
    graph = capture(Sum(), EXAMPLE).graph_module
    before = canonical_text(graph)
    for node in graph.graph.nodes:
        node.name = f"other_{node.name}"

    assert canonical_text(graph) == before


def test_a_copy_prints_alike() -> None:
    graph = capture(Sum(), EXAMPLE).graph_module

    assert canonical_text(copy_graph(graph)) == canonical_text(graph)


def test_constants_operands_and_operators_matter() -> None:
    class Swapped(Sum):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return super().forward(y, x)

    assert len({text(Sum()), text(Sum(factor=3.0)), text(Swapped())}) == 3


def test_lines_are_numbered_from_the_inputs() -> None:
    lines = text(Sum()).splitlines()

    assert lines[0].startswith("%0 placeholder x")
    assert lines[1].startswith("%1 placeholder y")
    assert lines[2].startswith("%2 call_function aten.sin.default (%0,)")
    assert lines[-1] == "%6 output output ({'logits': %5},)"


def test_dead_nodes_come_last_and_module_options_show(capture_plain: Callable[..., fx.GraphModule]) -> None:
    graph = capture_plain()
    before = canonical_text(graph)
    with graph.graph.inserting_after(graph.graph.find_nodes(op="placeholder")[-1]):
        graph.graph.call_function(aten.sin.default, (graph.graph.find_nodes(op="placeholder")[0],))
    after = canonical_text(graph)
    assert after.startswith(before)
    assert "aten.sin.default (%0,)" in after.removeprefix(before)
    assert "Dropout(p=0.5" in before

    graph.get_submodule("dropout_0").p = 0.25  # type: ignore[assignment]
    assert canonical_text(graph) != after
