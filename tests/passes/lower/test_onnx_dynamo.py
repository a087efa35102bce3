"""Traced graphs as ONNX in memory: what is let through, and what is refused with the reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from gatefx.errors import CaptureError
from gatefx.passes.lower.onnx_dynamo import lower_traced

from .test_dynamo_graph import Scaled, traced


def test_weights_are_no_part_of_the_model() -> None:
    model, x = Scaled().eval(), torch.randn(3, 5, 4)
    found = lower_traced(*traced(model, x, dynamic=True))
    proto = onnx.load_model_from_string(found.model)
    outside = {value.name for value in proto.graph.initializer if value.data_location == onnx.TensorProto.EXTERNAL}
    assert outside == set(found.weights)
    assert set(found.weights) == set(found.graph.weights)
    assert [value.name for value in proto.graph.input] == list(found.inputs)
    sizes = [[axis.dim_param for axis in value.type.tensor_type.shape.dim] for value in proto.graph.input]
    assert max(map(len, sizes)) == 3
    assert all(axis.dim_value != 5 for value in proto.graph.input for axis in value.type.tensor_type.shape.dim)


class Counting(nn.Module):
    """A layer that counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return x + self.calls


def dropped(x: Tensor) -> Tensor:
    return nn.functional.dropout(x, 0.5, training=True)


REFUSED: list[tuple[Callable[..., Any], Tensor, str]] = [
    (Counting(), torch.randn(3, 2), "writes to a buffer"),
    (dropped, torch.randn(3, 2), r"random numbers[\s\S]*dropout"),
    (lambda x: x + torch.rand(2), torch.randn(3, 2), r"random numbers[\s\S]*rand"),
    (lambda x: x * 2, torch.randn(3, 2, dtype=torch.bfloat16), r"types[\s\S]*bfloat16"),
    (torch.linalg.qr, torch.randn(3, 2), r"No ONNX form[\s\S]*qr"),
]


@pytest.mark.parametrize(("function", "x", "reason"), REFUSED)
def test_what_is_no_pure_function_in_onnx_is_refused(function: Callable[..., Any], x: Tensor, reason: str) -> None:
    with pytest.raises(CaptureError, match=reason):
        lower_traced(*traced(function, x))


def test_switched_off_dropout_is_no_random_number() -> None:
    found = lower_traced(*traced(nn.Dropout(0.5).eval(), torch.randn(3, 2)))
    assert "Dropout" not in {node.op_type for node in onnx.load_model_from_string(found.model).graph.node}
