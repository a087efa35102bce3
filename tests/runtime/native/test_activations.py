from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest
import torch
from torch import Tensor

from gatefx.runtime.native.activations import activate_natively

from .cases import BOUNDS, error
from .linear_cases import LINEAR_SHAPES, LinearCase
from .linear_sessions import FED, RANK_GATED, ROUTED, TOKEN_GATED, WEIGHTS, fed, layer_model, run, session
from .runs import opened

OPERATORS = (RANK_GATED, TOKEN_GATED, ROUTED)


def fused(before: onnx.ModelProto) -> onnx.ModelProto:
    """Of a layer and GELU: one node."""
    model = onnx_ir.from_proto(before)
    assert activate_natively(model) == 1
    assert activate_natively(model) == 0
    assert [node.op_type for node in model.graph] == [before.graph.node[0].op_type + "Gelu"]
    return onnx_ir.to_proto(model)


def meaning(case: LinearCase, operator: tuple[str, list[str]]) -> Tensor:
    """GELU of what the layer answers, in float64, every token that is gated with its update."""
    answers = {
        "GatedLinear": lambda: case.rank_gated()[1],
        "TokenGatedLinear": lambda: case.token_gated(0.0),
        "RoutedLinear": case.routed,
    }
    return torch.nn.functional.gelu(answers[operator[0]]())


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", FED)
@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator[0])
def test_layers_apply_it_to_what_they_answer(
    native_folder: Path, isa: str, operator: tuple[str, list[str]], dtype: torch.dtype, threads: int
) -> None:
    for seed, shape in enumerate(LINEAR_SHAPES):
        case = LinearCase(shape, dtype, seed)
        feed = fed(case)
        answer = run(opened(fused(layer_model(operator, feed, WEIGHTS, gelu=True)), native_folder, threads), feed)
        layer = run(session(native_folder, operator, feed, WEIGHTS, threads), feed)
        assert error(answer, torch.nn.functional.gelu(layer.double())) <= BOUNDS[dtype], shape
        if dtype != torch.float16:  # whose answers are rounded before GELU, as between two nodes
            assert error(answer, meaning(case, operator)) <= BOUNDS[dtype], shape


def test_values_of_every_size(native_folder: Path, isa: str) -> None:
    x = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([0.0, -0.0, 1e-30, -1e30, 1e30, torch.inf, torch.nan])])
    case = LinearCase((1, (len(x),), 1, 1, 1), torch.float32)
    plain = {
        "x": x.view(1, -1, 1),
        "weight": torch.ones(1, 1),
        "bias": torch.zeros(1),
        "indices": -torch.ones(1, 1).long(),
    }
    feed = {**fed(case), **{name: value.numpy() for name, value in plain.items()}}
    answer = run(opened(fused(layer_model(RANK_GATED, feed, WEIGHTS, gelu=True)), native_folder, 1), feed).flatten()
    expected = torch.nn.functional.gelu(x.double())
    assert torch.equal(answer.isnan(), x.isnan())
    finite = x.isfinite()
    apart = (answer.double() - expected)[finite].abs()
    assert bool((apart <= 3e-7 * x[finite].double().abs()).all())  # units in the last place of a sum with x
    assert float(answer[x == torch.inf]) == torch.inf
    assert not answer[x < -5.5].any()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda model: model.graph[1].attributes.add(onnx_ir.AttrString("approximate", "tanh")), "by tanh"),
        (lambda model: model.graph.outputs.append(model.graph[0].outputs[0]), "the layer's answer is the model's too"),
        (lambda model: setattr(model.graph[0], "domain", ""), "another layer"),
        (lambda model: setattr(model.graph[1], "domain", "com.microsoft"), "another GELU"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_declined(change: object, why: str) -> None:
    feed = fed(LinearCase((2, (3,), 5, 7, 3), torch.float32))
    model = onnx_ir.from_proto(layer_model(RANK_GATED, feed, WEIGHTS, gelu=True))
    assert callable(change)
    change(model)
    before = [node.op_type for node in model.graph]
    assert activate_natively(model) == 0, why
    assert [node.op_type for node in model.graph] == before


def test_an_answer_that_something_else_reads_stays() -> None:
    feed = fed(LinearCase((2, (3,), 5, 7, 3), torch.float32))
    model = onnx_ir.from_proto(layer_model(RANK_GATED, feed, WEIGHTS, gelu=True))
    other = onnx_ir.Node("", "Neg", [model.graph[0].outputs[0]], num_outputs=1)
    model.graph.append(other)
    model.graph.outputs.append(other.outputs[0])
    assert activate_natively(model) == 0


def test_calls_do_not_disturb_each_other(native_folder: Path) -> None:
    case = LinearCase((3, (40,), 64, 96, 8), torch.float32)
    feed = fed(case)
    made = opened(fused(layer_model(RANK_GATED, feed, WEIGHTS, gelu=True)), native_folder, 2)
    answers = [run(made, feed) for _ in range(20)]
    assert all(torch.equal(answer, answers[0]) for answer in answers)
    assert not np.isnan(answers[0].numpy()).any()
