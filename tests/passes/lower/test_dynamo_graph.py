"""What Dynamo traced becomes a graph over tensors, which computes what the call's function did."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from gatefx.errors import CaptureError
from gatefx.passes.lower.dynamo_graph import TensorGraph, is_weight, tensor_graph


def traced(function: Callable[..., Any], *inputs: object, **options: Any) -> tuple[fx.GraphModule, tuple[object, ...]]:
    """(the first graph of a function, the call that it was traced for)."""
    seen: list[tuple[fx.GraphModule, tuple[object, ...]]] = []

    def backend(graph: fx.GraphModule, _: Sequence[object]) -> Callable[..., Any]:
        def run(*call: object) -> Any:
            seen.append((graph, call))
            return graph.forward(*call)

        return run

    torch._dynamo.reset()
    torch.compile(function, backend=backend, **options)(*inputs)
    return seen[0]


def answered(graph: TensorGraph, call: Sequence[object]) -> list[object]:
    """The graph's answers to a call."""
    own = iter(graph.graph_module(*(call[place] for place in graph.fed)))
    return [next(own) if place is None else call[place] for place in graph.answers]


class Scaled(nn.Module):
    """A layer with a weight, a buffer, a Python float and a size."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 6)
        self.norm = nn.LayerNorm(6, eps=0.25)
        self.register_buffer("scale", torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.layer(x)) * self.scale
        return y.view(x.shape[0] * x.shape[1], 6)


def test_weights_are_owned_sizes_read_and_numbers_written_in() -> None:
    model, x = Scaled().eval(), torch.randn(3, 5, 4)
    graph, call = traced(model, x, dynamic=True)
    found = tensor_graph(graph, call)
    assert len(found.weights) == 4
    assert all(
        call[place] is dict(found.graph_module.named_parameters())[name] for name, place in found.weights.items()
    )
    assert list(found.numbers.values()) == [0.25]
    assert [call[place] is model.scale for place in found.fed].count(True) == 1
    varying = {found.varying[index] for index, place in enumerate(found.fed) if call[place] is x}
    assert varying == {(0, 1)}
    torch.testing.assert_close(answered(found, call)[0], model(x))
    longer = torch.randn(2, 9, 4)
    other = [longer if given is x else given for given in call]
    torch.testing.assert_close(answered(found, other)[0], model(longer))


def test_the_traced_graph_is_left_alone() -> None:
    model, x = Scaled().eval(), torch.randn(3, 5, 4)
    graph, call = traced(model, x, dynamic=True)
    before = str(graph.graph)
    tensor_graph(graph, call)
    assert str(graph.graph) == before


def test_a_size_that_no_tensor_has_is_a_number() -> None:
    graph, call = traced(lambda x, n: x * n, torch.randn(3, 4), 7, dynamic=True)
    found = tensor_graph(graph, call)
    assert list(found.numbers.values()) == [7]
    assert len(found.fed) == 1


def test_what_is_handed_back_is_no_answer_of_the_graph() -> None:
    x, y = torch.randn(3, 4), torch.randn(3, 4)
    graph, call = traced(lambda x, y: (x + y, y, x - y), x, y)
    found = tensor_graph(graph, call)
    assert found.answers.count(None) == len(found.graph_module(x, y)) == 2
    assert any(answer is y for answer in answered(found, call)) == (len(found.answers) == 3)


def test_sizes_are_no_answers() -> None:
    def broken(x: Tensor) -> Tensor:
        size = x.shape[0] + 2
        y = x.sin()
        torch._dynamo.graph_break()
        return y * size

    graph, call = traced(broken, torch.randn(3, 4), dynamic=True)
    torch._dynamo.reset()
    graph.graph.output_node().args = ((next(iter(graph.graph.nodes)),),)
    graph.graph.output_node().prev.meta.pop("example_value")
    next(iter(graph.graph.nodes)).meta.pop("example_value")
    with pytest.raises(CaptureError, match="no tensor"):
        tensor_graph(graph, call)


def test_inference_tensors_are_fed() -> None:
    assert is_weight(nn.Parameter(torch.ones(2)))
    assert not is_weight(torch.ones(2))
    with torch.inference_mode():
        assert not is_weight(nn.Parameter(torch.ones(2)))
