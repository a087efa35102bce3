"""What normalizing does to an exported graph: names, dropout, casts, tied weights, regions, writes in place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from gatefx.errors import CaptureError
from gatefx.models.regularization import AttentionDropout
from gatefx.passes.graph.capture import capture
from gatefx.passes.graph.legality import check_legality

EXAMPLE = {"x": torch.randn(3, 5, 8)}


def graph_of(module: nn.Module, example: dict[str, Any] | None = None) -> fx.GraphModule:
    graph = capture(module, example or EXAMPLE).graph_module
    check_legality(graph)
    return graph.eval()


def targets(graph: fx.GraphModule) -> list[str]:
    return [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]


class Model(nn.Module):
    """linear, then whatever a test gives."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.linear(x), self)


def same_in_both_modes(model: nn.Module, graph: fx.GraphModule) -> None:
    x = torch.randn(4, 6, 8)
    for training in (False, True):
        model.train(training)
        graph.train(training)
        torch.manual_seed(1)
        wanted = model(x)
        torch.manual_seed(1)
        assert torch.equal(graph(x)["logits"], wanted)


def test_names_are_the_model_s_and_outputs_have_names() -> None:
    graph = graph_of(Model(lambda h, _: {"first": h, "second": h + 1}))

    assert set(graph.state_dict()) == {"linear.weight", "linear.bias"}
    assert list(graph(EXAMPLE["x"])) == ["first", "second"]
    assert graph.graph.find_nodes(op="placeholder")[0].target == "x"


def test_dropout_becomes_a_module_and_attention_dropout_too() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, 0.3, batch_first=True)
    wrapped = Model(lambda h, m: m.layer(h))
    wrapped.layer = model

    graph = graph_of(wrapped)

    kinds = [type(graph.get_submodule(str(n.target))) for n in graph.graph.find_nodes(op="call_module")]
    assert kinds == [AttentionDropout, nn.Dropout, nn.Dropout, nn.Dropout]
    same_in_both_modes(wrapped, graph)


def test_casts_to_the_type_at_hand_are_removed_and_others_stay() -> None:
    graph = graph_of(Model(lambda h, _: h.float().to(h.device).double()))

    assert [name for name in targets(graph) if "to." in name or "_to_copy" in name] == ["aten.to.dtype"]
    assert graph(EXAMPLE["x"])["logits"].dtype == torch.float64


def test_tied_weights_stay_one_tensor() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x))

    model = Tied()
    graph = graph_of(model)

    assert len(list(graph.parameters())) == 1
    graph(EXAMPLE["x"])["logits"].sum().backward()
    model(EXAMPLE["x"]).sum().backward()
    torch.testing.assert_close(next(graph.parameters()).grad, model.a.weight.grad)


def test_regions_without_gradients_are_inlined_and_stay_without() -> None:
    def function(h: Tensor, model: nn.Module) -> Tensor:
        with torch.no_grad():
            scale = h.square().mean(-1, keepdim=True) * model.scale
        return h * scale

    model = Model(function)
    model.scale = nn.Parameter(torch.ones(8))
    graph = graph_of(model)

    same_in_both_modes(model, graph)
    for module in (model, graph):
        out = module(EXAMPLE["x"])
        (out if isinstance(out, Tensor) else out["logits"]).square().sum().backward()
    grads = dict(graph.named_parameters())
    for name, parameter in model.named_parameters():
        mine = grads[name].grad if name in grads else None
        if parameter.grad is None:
            assert mine is None
        else:
            torch.testing.assert_close(mine, parameter.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "function",
    [
        lambda h, _: F.relu(h, inplace=True),
        lambda h, _: (h + 0).add_(h).mul_(2),
        lambda h, _: F.dropout(h + 1, 0.5, _.training, inplace=True),
        lambda h, _: h.clone().masked_fill_(h > 0, 0.0),
        lambda h, _: h.clone().view(-1, 8).clamp_(min=0),
    ],
)
def test_writes_that_nobody_else_sees_become_functional(function: Any) -> None:
    model = Model(function)

    same_in_both_modes(model, graph_of(model))


def test_a_tensor_written_to_reads_as_written_later() -> None:
    def function(h: Tensor, model: nn.Module) -> Tensor:
        state = h + 0
        before = state * 3
        state.add_(1)
        F.dropout(state, 0.5, model.training, inplace=True)
        return before + state

    model = Model(function)

    same_in_both_modes(model, graph_of(model))


def _slice_write(h: Tensor, _: nn.Module) -> Tensor:
    out = torch.zeros_like(h)
    out[:, 1:] = h[:, :-1]
    return out


def _view_write(h: Tensor, _: nn.Module) -> Tensor:
    state = h + 0
    state.view(-1).relu_()
    return state


def _seen_by_view(h: Tensor, _: nn.Module) -> Tensor:
    state = h + 0
    view = state.view(-1, 8)
    state.add_(1)
    return view


@pytest.mark.parametrize("function", [_slice_write, _view_write, _seen_by_view])
def test_writes_that_somebody_else_sees_are_refused_not_miscompiled(function: Any) -> None:
    with pytest.raises(CaptureError, match=r"Model calls aten\.\w+_.* read elsewhere") as caught:
        graph_of(Model(function))

    assert "out of place" in str(caught.value)
