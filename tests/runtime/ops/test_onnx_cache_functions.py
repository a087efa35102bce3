from __future__ import annotations

import numpy as np
import onnx_ir
import onnxruntime
import pytest
import torch
from torch import nn

from gatefx.passes.lower.onnx import lower_to_onnx


class Write(nn.Module):
    """Rows at places of an axis."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, states: torch.Tensor, places: torch.Tensor, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"y": torch.ops.aten.index_copy(states, self.dim, places, rows)}


def opened(model: onnx_ir.Model) -> onnxruntime.InferenceSession:
    text = onnx_ir.to_proto(model).SerializeToString()
    return onnxruntime.InferenceSession(text, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("dim", [2, -2, 1])
def test_rows_are_written_where_torch_writes_them(dim: int) -> None:
    shape, axis = [2, 4, 9, 3], dim % 4
    rows_shape = [3 if place == axis else size for place, size in enumerate(shape)]
    example = {"states": torch.randn(shape), "places": torch.tensor([2, 0, 3]), "rows": torch.randn(rows_shape)}
    model = lower_to_onnx(Write(dim).eval(), example, ["y"])
    operators = [node.op_type for node in model.graph]
    assert "ScatterElements" in operators
    assert "Transpose" not in operators, "the axis stays where it is"
    session = opened(model)
    found = session.run(None, {name: value.numpy() for name, value in example.items()})[0]
    assert np.array_equal(found, Write(dim)(*example.values())["y"].numpy())


def test_one_buffer_for_both_ends_is_written_in_place() -> None:
    example = {"states": torch.randn(2, 4, 9, 3), "places": torch.tensor([5, 1]), "rows": torch.randn(2, 4, 2, 3)}
    session = opened(lower_to_onnx(Write(2).eval(), example, ["y"]))
    wanted = Write(2)(*example.values())["y"].numpy()
    buffer = onnxruntime.OrtValue.ortvalue_from_shape_and_type([2, 4, 9, 3], np.float32, "cpu", 0)
    buffer.update_inplace(example["states"].numpy())
    binding = session.io_binding()
    binding.bind_ortvalue_input("states", buffer)
    binding.bind_cpu_input("places", example["places"].numpy())
    binding.bind_cpu_input("rows", example["rows"].numpy())
    binding.bind_ortvalue_output("y", buffer)
    session.run_with_iobinding(binding)
    assert np.array_equal(buffer.numpy(), wanted)
