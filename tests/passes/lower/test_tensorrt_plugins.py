"""Nodes for plugins in a lowered graph: which stay, their names, the kernels they need, and what is refused."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from gatefx.errors import CaptureError
from gatefx.passes.lower.onnx import lower_to_onnx
from gatefx.passes.lower.onnx_precision import Precision, cast_model
from gatefx.passes.lower.tensorrt_plugins import inline_all_but_plugins, kernels_needed
from gatefx.runtime.ops import schema, update_ops
from gatefx.runtime.tensorrt.axes import AxisRange
from gatefx.runtime.tensorrt.lint import lint
from gatefx.runtime.tensorrt.plugin_files import OPERATORS, Needed

D_IN, D_OUT = 6, 10


class Gated(nn.Module):
    """A layer whose directions each example chooses, one whose tokens take it or leave it, and one of two weights."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.layer, self.other, self.last = nn.Linear(D_IN, D_OUT), nn.Linear(D_IN, D_OUT), nn.Linear(D_OUT, D_IN)
        self.a, self.b = nn.Parameter(torch.randn(rank, D_IN)), nn.Parameter(torch.randn(D_OUT, rank))
        self.c, self.d = nn.Parameter(torch.randn(rank, D_OUT)), nn.Parameter(torch.randn(D_IN, rank))
        self.gram, self.threshold = nn.Parameter(self.d.detach().t() @ self.d.detach()), torch.tensor(0.3)
        self.scale = torch.tensor(0.5)
        self.directions = torch.arange(rank)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        indices = torch.where(x.mean((1, 2))[:, None] > 0, self.directions, -1)
        h = schema.gated_lora(self.layer(x), x, self.a, self.b, indices, self.scale)
        routed = update_ops.routed_linear(x, self.layer.weight, self.other.weight, None, h.mean(-1) > 0)
        h = h + routed
        h = update_ops.token_gated_lora(self.last(h), h, self.c, self.d, self.gram, self.threshold, self.scale)
        return {"y": h}


def lowered(module: nn.Module) -> onnx_ir.Model:
    return lower_to_onnx(module.eval(), {"x": torch.randn(3, 5, D_IN)}, ["y"], opset=20)


@pytest.fixture(scope="module")
def module() -> Gated:
    torch.manual_seed(0)
    return Gated(rank=4)


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-5), ("fp16", 3e-2)])
def test_nodes_with_a_plugin_stay_and_mean_the_same(module: Gated, precision: Precision, bound: float) -> None:
    model = lowered(module)
    inline_all_but_plugins(model)
    cast_model(model, precision)

    ours = [node for node in model.graph if node.domain]
    assert sorted(node.op_type for node in ours) == sorted(OPERATORS)
    assert {node.attributes["plugin_namespace"].value for node in ours} == {"gatefx"}
    assert {node.domain for node in ours} == {"gatefx"}
    kinds = {onnx_ir.DataType.FLOAT if precision == "fp32" else onnx_ir.DataType.FLOAT16}
    assert {value.dtype for node in ours for value in node.outputs} == kinds

    assert list(kernels_needed(model, precision)) == [
        Needed("GatedLora", precision, D_IN, D_OUT, 4, 1),
        Needed("RoutedRows", precision, D_IN, D_OUT, 0, 1),
        Needed("TokenGatedLora", precision, D_OUT, D_IN, 4, 1),
    ]
    proto = onnx_ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    assert lint(proto, {"batch": AxisRange(1, 3, 8), "sequence": AxisRange(1, 5, 8)}) == ()
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    x = torch.randn(4, 7, D_IN)
    meant = module(x)["y"].detach().numpy()
    (found,) = session.run(None, {"x": x.numpy()})
    assert np.abs(found - meant).mean() <= bound * np.abs(meant).max()


def test_a_graph_without_such_nodes_is_refused() -> None:
    class Plain(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"y": x * 2}

    with pytest.raises(CaptureError, match="no operator that gatefx has a TensorRT plugin for"):
        inline_all_but_plugins(lowered(Plain()))


def test_a_rank_above_the_kernels_is_refused() -> None:
    model = lowered(Gated(rank=65))
    inline_all_but_plugins(model)
    with pytest.raises(CaptureError, match="takes this rank") as caught:
        kernels_needed(model, "fp32")
    assert "rank 65" in caught.value.given


def test_weights_of_unknown_size_are_refused(module: Gated) -> None:
    model = lowered(module)
    inline_all_but_plugins(model)
    (node,) = (node for node in model.graph if node.op_type == "GatedLora")
    node.replace_input_with(2, onnx_ir.Value(name="later", shape=onnx_ir.Shape(["r", D_IN])))
    with pytest.raises(CaptureError, match="not written in the graph") as caught:
        kernels_needed(model, "fp32")
    assert "input 2" in caught.value.given
