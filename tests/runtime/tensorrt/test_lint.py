"""The rules of TensorRT: each one fires on what it is for, and lets what is right pass."""

from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper

from gatefx.errors import InputError
from gatefx.runtime.ops.onnx_functions import DOMAIN, VERSION, function_protos
from gatefx.runtime.tensorrt.axes import AxisRange
from gatefx.runtime.tensorrt.lint import lint

AXES = {"batch": AxisRange(1, 4, 8), "sequence": AxisRange(8, 32, 64)}
OPSET = 18


def floats(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def whole(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.INT64, shape)


def model(nodes: list[onnx.NodeProto], *inputs: onnx.ValueInfoProto) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "few_nodes", list(inputs), [])
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, VERSION)]
    return helper.make_model(graph, functions=list(function_protos(OPSET).values()), opset_imports=opsets)


def topk(k: int) -> list[onnx.NodeProto]:
    return [
        helper.make_node("Constant", [], ["k"], value_ints=[k]),
        helper.make_node("TopK", ["x", "k"], ["values", "places"], axis=1, name="chooses"),
    ]


def problems(found: onnx.ModelProto) -> list[str]:
    return [finding.problem for finding in lint(found, AXES)]


def test_nonzero_is_found_by_name() -> None:
    (finding,) = lint(model([helper.make_node("NonZero", ["x"], ["places"], name="searches")], floats("x", 3)), AXES)
    assert (finding.node, finding.operator) == ("searches", "NonZero")
    assert "'searches'" in str(finding)


@pytest.mark.parametrize(("reduction", "broken"), [("add", True), ("max", True), ("none", False)])
def test_scattering_with_a_reduction_is_found(reduction: str, broken: bool) -> None:
    node = helper.make_node("ScatterElements", ["x", "i", "x"], ["y"], axis=0, reduction=reduction)
    assert bool(problems(model([node], floats("x", 4), whole("i", 4)))) == broken


@pytest.mark.parametrize(("size", "k", "broken"), [(8, 8, False), (8, 9, True), ("sequence", 8, False)])
def test_a_constant_k_is_held_against_the_least_size(size: int | str, k: int, broken: bool) -> None:
    assert bool(problems(model(topk(k), floats("x", "batch", size)))) == broken


def test_a_constant_k_beyond_an_axis_of_unknown_range_is_found() -> None:
    assert problems(model(topk(2), floats("x", "batch", "other")))


def test_choosing_along_a_single_axis_is_found() -> None:
    node = helper.make_node("TopK", ["x", "k"], ["values", "places"], axis=0)
    (problem,) = problems(model([node], floats("x", 8), whole("k", 1)))
    assert "one axis" in problem


def test_a_k_from_data_must_be_capped_by_the_axis_itself() -> None:
    inputs = floats("x", "batch", "sequence"), whole("k", 1)
    own = helper.make_node("Shape", ["x"], ["size"], start=1, end=2)
    other = helper.make_node("Shape", ["x"], ["size"], start=0, end=1)
    cap = helper.make_node("Min", ["k", "size"], ["capped"])
    chooses = helper.make_node("TopK", ["x", "capped"], ["values", "places"], axis=1)

    assert problems(model([own, cap, chooses], *inputs)) == []
    assert len(problems(model([other, cap, chooses], *inputs))) == 1
    assert len(problems(model([helper.make_node("TopK", ["x", "k"], ["v", "p"], axis=1)], *inputs))) == 1


def test_local_functions_are_looked_into() -> None:
    """Our own bodies keep the rules, and a body that breaks one is found."""
    select = helper.make_node("SelectTokens", ["x", "counts"], ["i", "v"], domain=DOMAIN)
    routed = helper.make_node("RoutedLinear", ["s", "w", "w", "b", "c"], ["y"], domain=DOMAIN)
    choice = helper.make_tensor_value_info("c", TensorProto.BOOL, ["batch", "sequence"])
    weights = floats("w", 4, 6), floats("b", 4)
    ours = model(
        [select, routed],
        floats("x", "batch", "sequence"),
        whole("counts", "batch"),
        floats("s", "batch", "sequence", 6),
        choice,
        *weights,
    )
    assert problems(ours) == []

    (function,) = (f for f in ours.functions if f.name == "RoutedLinear")
    function.node.append(helper.make_node("NonZero", ["choice"], ["unused"]))
    assert len(problems(ours)) == 1


@pytest.mark.parametrize("sizes", [(0, 1, 2), (3, 2, 4), (1, 5, 4)])
def test_ranges_out_of_order_are_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(InputError, match="sizes in order"):
        AxisRange(*sizes)
