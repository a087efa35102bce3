"""follow_tokens: the axes it names are those along which one token's change stays in one row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from gatefx.passes.find.layers import find_cuts
from gatefx.passes.find.token_flow import follow_tokens
from gatefx.passes.graph.capture import capture

aten = torch.ops.aten
B, T, D = 3, 5, 12


class Steps(nn.Module):
    def __init__(self, steps: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body = nn.Linear(D, D)
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        return self.steps(torch.sigmoid(self.body(x))).clone()


class Recorded(fx.Interpreter):
    """Runs a graph from a changed state on, and keeps every value."""

    def __init__(self, graph: fx.GraphModule, state: fx.Node, change: Tensor) -> None:
        super().__init__(graph)
        self.state, self.change = state, change
        self.values: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        value = value + self.change if n is self.state else value
        self.values[n] = value
        return value


def check_rows(graph: fx.GraphModule, state: fx.Node, values: tuple[Tensor, ...], nodes: list[fx.Node]) -> None:
    """Changing the last token but one of the state leaves every row but that one of the nodes' values."""
    axes = follow_tokens(graph, state).axes
    width = state.meta["val"].shape[2]
    plain, changed = Recorded(graph, state, torch.zeros(())), Recorded(graph, state, torch.zeros(1, T, width))
    changed.change[:, T - 2] = 1
    plain.run(*values)
    changed.run(*values)
    for node in nodes:
        difference = (plain.values[node] - changed.values[node]).abs()
        for axis in range(difference.dim()):
            if axis in axes.get(node, ()):
                assert difference.shape[axis] == T, node
        others = difference
        for axis in axes.get(node, ()):
            others = others.index_fill(axis, torch.tensor([T - 2]), 0)
        assert not others.any(), node


@pytest.mark.parametrize(
    ("steps", "axes"),
    [
        (lambda h: h.view(*h.shape[:2], 4, 3).transpose(1, 2).flatten(0, 1), {1}),
        (lambda h: h.permute(2, 1, 0).unsqueeze(0).squeeze(0).permute(1, 0, 2), {0}),
        (lambda h: torch.stack([h, -h], 1).repeat(1, 1, 1, 2), {2}),
        (lambda h: (h.chunk(3, -1)[1] + h.split(4, -1)[2]).unbind(-1)[0].tanh(), {1}),
        (lambda h: (h.unsqueeze(1) * h.unsqueeze(2)).mean(-1), {1, 2}),
        (lambda h: nn.functional.layer_norm(h, (D,)).softmax(-1).sum(-1, keepdim=True), {1}),
        (lambda h: torch.cat([h.transpose(1, 2)[:, 3:], h.mT.neg()], 1).gather(1, torch.zeros_like(h.mT).long()), {2}),
        (lambda h: (h @ h.mT).masked_fill(torch.eye(h.shape[1]) > 0, 0.0), {1, 2}),
    ],
)
def test_rows_stay_apart_along_the_named_axes(steps: Callable[[Tensor], Tensor], axes: set[int]) -> None:
    graph = capture(Steps(steps).eval(), {"x": torch.randn(B, T, D)}).graph_module
    state = next(node for node in graph.graph.nodes if node.target is aten.sigmoid.default)
    flow = follow_tokens(graph, state)

    check_rows(graph, state, (torch.randn(B, T, D),), [n for n in flow.axes if isinstance(n.meta["val"], Tensor)])

    assert flow.misses == []
    assert flow.axes[graph.graph.output_node().all_input_nodes[0]] == axes


@pytest.mark.parametrize("family", ["bert", "deberta-v2", "modernbert", "mpnet"])
def test_rows_of_a_model_stay_apart_until_they_attend(captured_family: Any, family: str) -> None:
    graph = captured_family(family)[1].graph_module.eval()
    cuts = find_cuts(graph)
    assert isinstance(cuts, tuple)
    flow = follow_tokens(graph, cuts[1].state)
    position = {node: index for index, node in enumerate(graph.graph.nodes)}
    first = position[flow.attentions[0].node]
    before = [n for n in flow.axes if position[n] < first and isinstance(n.meta["val"], Tensor)]

    inputs = torch.randint(5, 100, (B, T)), torch.ones(B, T, dtype=torch.long)
    check_rows(graph, cuts[1].state, inputs, before)

    assert len(before) > 5
    assert flow.misses == []
