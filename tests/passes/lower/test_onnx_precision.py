"""The cast to 16 bits: weights and activations are cast, and what must stay exact stays in float32."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_ir.passes.common import ShapeInferencePass

from gatefx.errors import CaptureError
from gatefx.passes.lower.onnx_precision import PRECISIONS, cast_model, float32_nodes

WIDTH = 4
HALVES = [precision for precision in PRECISIONS if precision != "fp32"]
TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
Cast = Callable[..., onnx.ModelProto]


def model(
    nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], outputs: dict[str, int], **inputs: int
) -> onnx_ir.Model:
    graph = helper.make_graph(
        nodes,
        "few_nodes",
        [helper.make_tensor_value_info(name, kind, ["n", WIDTH]) for name, kind in inputs.items()],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return onnx_ir.from_proto(proto)


def cast(given: onnx_ir.Model, precision: str) -> onnx.ModelProto:
    cast_model(given, precision)
    proto = onnx_ir.to_proto(given)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def weight_types(proto: onnx.ModelProto) -> dict[str, int]:
    return {weight.name: weight.data_type for weight in proto.graph.initializer}


def kept_names(given: onnx_ir.Model) -> set[str]:
    ShapeInferencePass()(given)
    return {node.op_type for node in float32_nodes(given.graph)}


def product(weight: np.ndarray) -> onnx_ir.Model:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    return model([node], {"w": weight}, {"y": TensorProto.FLOAT}, x=TensorProto.FLOAT)


def run(proto: onnx.ModelProto, **arrays: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, arrays)


@pytest.mark.parametrize("precision", HALVES)
def test_weights_are_cast_and_the_border_stays_float32(precision: str) -> None:
    proto = cast(product(np.eye(WIDTH, dtype=np.float32)), precision)
    assert weight_types(proto) == {"w": TYPES[precision]}
    kinds = {v.type.tensor_type.elem_type for v in (*proto.graph.input, *proto.graph.output)}
    assert kinds == {TensorProto.FLOAT}
    assert [node.op_type for node in proto.graph.node] == ["Cast", "MatMul", "Cast"]
    assert [v.name for v in proto.graph.output] == ["y"]


def test_single_precision_changes_nothing() -> None:
    given = product(np.eye(WIDTH, dtype=np.float32))
    before = onnx_ir.to_proto(given).SerializeToString()
    cast_model(given, "fp32")
    assert onnx_ir.to_proto(given).SerializeToString() == before


@pytest.mark.parametrize("precision", HALVES)
def test_numbers_beyond_the_range_become_the_largest_and_infinities_stay(precision: str) -> None:
    weight = np.diag(np.array([3.4e38, -3.4e38, np.inf, 1], dtype=np.float32))
    (stored,) = cast(product(weight), precision).graph.initializer
    most = float(onnx_ir.DataType(TYPES[precision]).max)
    np.testing.assert_array_equal(numpy_helper.to_array(stored).astype(np.float64).diagonal(), [most, -most, np.inf, 1])


def test_a_square_and_its_sum_and_the_decision_on_it_stay_float32() -> None:
    """‖x‖² ≥ τ: 300² is beyond float16, and no rounding of τ may turn a decision."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Mul", ["h", "h"], ["square"]),
        helper.make_node("ReduceSum", ["square", "last"], ["size"], keepdims=1),
        helper.make_node("Mul", ["size", "factor"], ["scaled"]),
        helper.make_node("GreaterOrEqual", ["scaled", "threshold"], ["taking"]),
    ]
    weights = {
        "w": np.eye(WIDTH, dtype=np.float32),
        "last": np.array([-1]),
        "factor": np.array(1.0, np.float32),
        "threshold": np.array(4.0001, np.float32),
    }
    given = model(nodes, weights, {"taking": TensorProto.BOOL}, x=TensorProto.FLOAT)
    assert kept_names(given) == {"Mul", "ReduceSum", "GreaterOrEqual"}
    proto = cast(given, "fp16")
    assert weight_types(proto) == {
        "w": TensorProto.FLOAT16,
        "last": TensorProto.INT64,
        "factor": TensorProto.FLOAT,
        "threshold": TensorProto.FLOAT,
    }
    x = np.zeros((3, WIDTH), np.float32)
    x[:, 0] = [300, 2, 2.001]
    assert run(proto, x=x)[0].ravel().tolist() == [True, False, True]


def test_what_follows_from_whole_numbers_stays_float32_until_it_meets_an_activation() -> None:
    """Positions beyond 2048 are no float16; the table they turn is cast when it is multiplied with states."""
    nodes = [
        helper.make_node("Cast", ["positions"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["floats", "frequencies"], ["angles"]),
        helper.make_node("Cos", ["angles"], ["table"]),
        helper.make_node("Mul", ["x", "table"], ["y"]),
    ]
    frequencies = np.eye(WIDTH, dtype=np.float32) * np.float32(1 / 3)
    given = model(
        nodes, {"frequencies": frequencies}, {"y": TensorProto.FLOAT}, x=TensorProto.FLOAT, positions=TensorProto.INT64
    )
    assert kept_names(given) == {"Cast", "MatMul", "Cos"}
    proto = cast(given, "fp16")
    assert weight_types(proto) == {"frequencies": TensorProto.FLOAT}
    positions = np.array([[4097, 2049, 0, 5]])
    found = run(proto, x=np.ones((1, WIDTH), np.float32), positions=positions)[0]
    np.testing.assert_allclose(found, np.cos(positions / 3), atol=1e-3)


def test_rows_of_a_table_are_activations() -> None:
    nodes = [helper.make_node("Gather", ["table", "ids"], ["y"])]
    given = model(nodes, {"table": np.ones((9, 3), np.float32)}, {"y": TensorProto.FLOAT}, ids=TensorProto.INT64)
    assert kept_names(given) == set()
    assert weight_types(cast(given, "bf16")) == {"table": TensorProto.BFLOAT16}


def test_a_weight_that_both_read_is_stored_once_in_16_bits() -> None:
    nodes = [
        helper.make_node("Mul", ["x", "w"], ["y"]),
        helper.make_node("Greater", ["x", "w"], ["more"]),
    ]
    given = model(
        nodes, {"w": np.float32([0.1] * WIDTH)}, {"y": TensorProto.FLOAT, "more": TensorProto.BOOL}, x=TensorProto.FLOAT
    )
    proto = cast(given, "fp16")
    assert weight_types(proto) == {"w": TensorProto.FLOAT16}
    casts = [node for node in proto.graph.node if node.op_type == "Cast" and node.input[0] == "w"]
    assert [node.attribute[0].i for node in casts] == [TensorProto.FLOAT]


def test_types_in_attributes_follow() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("ConstantOfShape", ["shape"], ["ones"], value=helper.make_tensor("v", 1, [1], [1.0])),
        helper.make_node("Add", ["x", "ones"], ["y"]),
    ]
    proto = cast(model(nodes, {}, {"y": TensorProto.FLOAT}, x=TensorProto.FLOAT), "fp16")
    (node,) = [node for node in proto.graph.node if node.op_type == "ConstantOfShape"]
    assert node.attribute[0].t.data_type == TensorProto.FLOAT16
    assert run(proto, x=np.ones((2, WIDTH), np.float32))[0].tolist() == [[2.0] * WIDTH] * 2


def test_a_branch_is_refused() -> None:
    answer = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    branch = helper.make_graph([helper.make_node("Identity", ["x"], ["z"])], "branch", [], [answer])
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
        helper.make_node("Cast", ["most"], ["some"], to=TensorProto.BOOL),
        helper.make_node("If", ["some"], ["y"], then_branch=branch, else_branch=branch, name="chooses"),
    ]
    given = model(nodes, {}, {"y": TensorProto.FLOAT}, x=TensorProto.FLOAT)
    with pytest.raises(CaptureError, match="branches") as caught:
        cast_model(given, "fp16")
    assert "chooses" in caught.value.given
