from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import pytest

from gatefx.runtime.native.library import Replaced
from gatefx.runtime.native.score_gates import gate_natively
from gatefx.runtime.native.session_model import native_model

from .runs import opened, run

TEXT = """
<ir_version: 10, opset_import: ["" : 23]>
gate ({kind}[batch,sequence,{d}] x, {kind} level) => (bool[batch,sequence] choice)
<{kind}[1,{d}] row = {{{numbers}}}, {kind}[{d},1] column = {{{numbers}}}, {kind}[1] bias = {{0.25}},
 int64[1] last = {{-1}}, int64[1] first = {{0}}, {kind}[{d},2] pair = {{{twice}}}, {kind}[2] biases = {{0.25, 0.5}}>
{{ {nodes} }}"""
TURNED = "w = Transpose<perm = [1, 0]>(row) p = MatMul(x, w)"
STORED = "p = MatMul(x, column)"
REST = "s = Add(p, bias) f = Squeeze(s, last) choice = GreaterOrEqual(f, level)"


def model(nodes: str, kind: str = "float", width: int = 37) -> onnx_ir.Model:
    """A gate of `width` features whose weights are small multiples of 1/8."""
    numbers = [((7 * i) % 17 - 8) / 8 for i in range(width)]
    listed = [", ".join(map(str, numbers)), ", ".join(map(str, numbers * 2))]
    text = TEXT.format(kind=kind, d=width, numbers=listed[0], twice=listed[1], nodes=nodes)
    made = onnx_ir.from_onnx_text(text)
    for value in made.graph.initializers.values():  # the text says nothing of their types
        value.shape, value.type = value.const_value.shape, onnx_ir.TensorType(value.const_value.dtype)
    return made


@pytest.mark.parametrize("kind", ["float", "double"])
@pytest.mark.parametrize(
    "nodes", [f"{TURNED} {REST}", f"{STORED} {REST}", f"{TURNED} {REST.replace('p, bias', 'bias, p')}"]
)
def test_the_nodes_become_one_and_mean_the_same(nodes: str, kind: str, native_folder: Path, tmp_path: Path) -> None:
    after = model(nodes, kind)
    assert gate_natively(after) == 1
    assert [(node.domain, node.op_type) for node in after.graph] == [("gatefx", "ScoreGate")]
    assert gate_natively(after) == 0
    dtype = np.float32 if kind == "float" else np.float64
    before = model(nodes, kind)
    onnx_ir.save(before, tmp_path / "model.onnx")
    native = native_model(tmp_path / "model.onnx")
    assert native is not None
    assert native.replaced == Replaced(gates=1)
    protobufs = (onnx_ir.to_proto(before), onnx_ir.to_proto(after))
    for batch, tokens in ((1, 1), (2, 0), (3, 49), (2, 97)):
        # Multiples of 1/8: every score is exact, in whatever order it is summed.
        x = np.random.default_rng(tokens).integers(-16, 17, (batch, tokens, 37)).astype(dtype) / 8
        feed = {"x": x, "level": np.asarray(1.5, dtype)}
        expected, found = (
            run(opened(proto, folder, 1), feed) for proto, folder in zip(protobufs, (None, native_folder), strict=True)
        )
        assert found.shape == (batch, tokens)
        assert np.array_equal(found, expected)
        assert tokens < 2 or 0 < int(found.sum()) < found.numel()


@pytest.mark.parametrize(
    "nodes",
    [
        f"{STORED} {REST.replace('s, last', 's, first')}",
        f"{STORED} {REST} other = Neg(f)",
        f"{STORED} {REST} other = Neg(p)",
        f"{STORED} {REST.replace('GreaterOrEqual', 'Greater')}",
        f"{STORED} s = Add(p, biases) g = Gather<axis = -1>(s, first) f = Squeeze(g, last) "
        "choice = GreaterOrEqual(f, level)",
        "p = MatMul(x, pair) g = Gather<axis = -1>(p, first) s = Add(g, bias) f = Squeeze(s, last) "
        "choice = GreaterOrEqual(f, level)",
        "p = MatMul(x, column) f = Squeeze(p, last) choice = GreaterOrEqual(f, level)",
    ],
)
def test_declined(nodes: str) -> None:
    graph = model(nodes)
    before = onnx_ir.to_proto(graph)
    assert gate_natively(graph) == 0
    assert onnx_ir.to_proto(graph) == before


def test_sums_in_fewer_bits_stay_standard() -> None:
    graph = model(f"{STORED} {REST}")
    graph.graph.inputs[0].dtype = onnx_ir.DataType.FLOAT16
    assert gate_natively(graph) == 0


@pytest.mark.parametrize("shape", [["batch", 1], ["batch"], [1, 1, 1], [2], None])
def test_levels_that_are_no_single_number_stay_standard(shape: Any) -> None:
    """One of more axes than the scores would give them to the choice."""
    graph = model(f"{STORED} {REST}")
    graph.graph.inputs[1].shape = None if shape is None else onnx_ir.Shape(shape)
    assert gate_natively(graph) == 0
    graph.graph.inputs[1].shape = onnx_ir.Shape([1])
    assert gate_natively(graph) == 1


def test_a_turned_weight_that_two_gates_share_is_turned_for_none() -> None:
    second = REST.replace("p,", "q,").replace("s ", "s2 ").replace("(s,", "(s2,").replace("f ", "f2 ")
    second = second.replace("(f,", "(f2,").replace("choice", "other")
    graph = model(f"{TURNED} q = MatMul(x, w) {REST} {second}")
    assert gate_natively(graph) == 2
    assert [node.op_type for node in graph.graph] == ["ScoreGate", "ScoreGate"]


def test_tensors_that_do_not_fit_are_a_status(native_folder: Path) -> None:
    graph = model(f"{STORED} {REST}")
    gate_natively(graph)
    graph.graph.inputs[0].shape = onnx_ir.Shape(["batch", "sequence", "width"])
    graph.graph.inputs[1].shape = onnx_ir.Shape(["levels"])  # after the check that it is one
    made = opened(onnx_ir.to_proto(graph), native_folder, 1)
    with pytest.raises(Exception, match="score's weight is not"):
        run(made, {"x": np.zeros((2, 3, 36), np.float32), "level": np.zeros(1, np.float32)})
    with pytest.raises(Exception, match="single numbers"):
        run(made, {"x": np.zeros((2, 3, 37), np.float32), "level": np.zeros(2, np.float32)})
