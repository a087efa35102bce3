"""Lowering to 16 bits: an ONNX model in float32 becomes one in float16 or bfloat16 whose delicate numbers stay float32.

    ids ─Gather(W)─▶ h ─MatMul─▶ … ─▶ logits         ids ─Gather(W16)─▶ h16 ─MatMul─▶ … ─Cast─▶ logits
    positions ─Cast─▶ Cos ─▶ Mul(h, ·)          →    positions ─Cast─▶ Cos ─Cast─▶ Mul(h16, ·)
    h ─ReduceL2─▶ ≥ threshold                        h16 ─Cast─▶ ReduceL2 ─▶ ≥ threshold

TensorRT's networks are strongly typed: what a number is computed in stands in the graph. Float32 are

* inputs and outputs, so that a caller needs no 16-bit type;
* reductions, powers, roots, exponentials and angles: their range or their sums exceed 16 bits;
* decisions (comparisons, TopK), so that no rounding makes a choice;
* what follows from whole numbers alone, as positions, counts and masks do, until it meets an activation;
* what only these read: the square before a sum, the score before a choice, the constant beside them.

Approximate, to the precision of the type. Constants beyond its range become its largest number, as masks need.

Refused: graphs with branches or loops, and values whose type no one knows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from ...errors import CaptureError

if TYPE_CHECKING:
    import onnx_ir

Precision = Literal["fp32", "fp16", "bf16"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16")

_DELICATE = frozenset(
    (
        *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMean", "ReduceSum", "ReduceSumSquare"),
        *("CumSum", "Pow", "Sqrt", "Reciprocal", "Exp", "Log", "Sin", "Cos", "Range", "Resize"),
        *("TopK", "ArgMax", "ArgMin", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal"),
    )
)
_ELEMENTWISE = frozenset(
    (
        *("Add", "Sub", "Mul", "Div", "Neg", "Abs", "Max", "Min", "Where", "Clip"),
        *("Sigmoid", "Tanh", "Relu", "Softplus", "Erf"),
        *("Identity", "Reshape", "Squeeze", "Unsqueeze", "Expand", "Transpose"),
    )
)


def cast_model(model: onnx_ir.Model, precision: Precision) -> None:
    """Cast `model` in place; it has no local functions.

    Raises:
        CaptureError: a branch, a loop, or a value of unknown type.
    """
    if precision == "fp32":
        return
    import onnx_ir
    from onnx_ir.passes import common

    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.ShapeInferencePass(check_type=False, strict_mode=False)(model)
    _check(model.graph)
    half = {"fp16": onnx_ir.DataType.FLOAT16, "bf16": onnx_ir.DataType.BFLOAT16}[precision]
    _Casting(model.graph, half, float32_nodes(model.graph)).run()


def float32_nodes(graph: onnx_ir.Graph) -> frozenset[onnx_ir.Node]:
    """The nodes that stay in float32, see the module's docstring."""
    numbers: set[onnx_ir.Node] = set()
    for node in graph:
        if _is_number_work(node, numbers):
            numbers.add(node)
    kept = numbers | {node for node in graph if node.op_type in _DELICATE}
    for node in reversed(graph):
        readers = [reader for output in node.outputs for reader, _ in output.uses()]
        answers = any(output.is_graph_output() for output in node.outputs)
        if node.op_type in _ELEMENTWISE and readers and not answers and all(reader in kept for reader in readers):
            kept.add(node)
    return frozenset(kept)


def _is_number_work(node: onnx_ir.Node, numbers: set[onnx_ir.Node]) -> bool:
    """Whether the node's floats come from whole numbers and constants, and from no activation or table."""
    floats = [value for value in _floats(node.inputs) if not value.is_initializer()]
    if node.op_type in ("Cast", "CastLike") and not list(_floats(node.inputs[:1])):
        return True
    return bool(floats) and all(value.producer() in numbers for value in floats)


def _floats(values: Iterator[onnx_ir.Value | None] | tuple[onnx_ir.Value | None, ...]) -> Iterator[onnx_ir.Value]:
    import onnx_ir

    return (value for value in values if value is not None and value.dtype == onnx_ir.DataType.FLOAT)


def _check(graph: onnx_ir.Graph) -> None:
    import onnx_ir

    for node in graph:
        if any(attribute.type == onnx_ir.AttributeType.GRAPH for attribute in node.attributes.values()):
            raise CaptureError(
                "A graph with branches or loops is not cast to 16 bits.",
                given=f"{node.op_type} {node.name!r}",
                expected="operators without graphs of their own",
                remedy='export with precision="fp32"',
            )
        if untyped := [value.name for value in node.outputs if value.dtype is None and value.uses()]:
            raise CaptureError(
                "A graph whose types are not all known is not cast to 16 bits.",
                given=f"{node.op_type} {node.name!r}, output {untyped[0]!r}",
                expected="operators whose types ONNX infers",
                remedy='export with precision="fp32"',
            )


@dataclass
class _Casting:
    """One cast of one graph."""

    graph: onnx_ir.Graph
    half: onnx_ir.DataType
    kept: frozenset[onnx_ir.Node]
    casts: dict[onnx_ir.Value, onnx_ir.Value] = field(default_factory=dict)
    """Value → the same in the other type."""

    def run(self) -> None:
        nodes = list(self.graph)
        floats = {node: {place for place, _ in self._float_inputs(node)} for node in nodes}
        for weight in list(_floats(tuple(self.graph.initializers.values()))):
            self._cast_weight(weight)
        for node in nodes:
            if node not in self.kept:
                self._retype(node)
        for node in nodes:
            wanted = self._type_in(node)
            for place in floats[node]:
                value = node.inputs[place]
                if value is not None and value.dtype != wanted:
                    node.replace_input_with(place, self._in_other_type(value, wanted))
        self._answer_in_float32()

    def _type_in(self, node: onnx_ir.Node) -> onnx_ir.DataType:
        import onnx_ir

        return onnx_ir.DataType.FLOAT if node in self.kept else self.half

    @staticmethod
    def _float_inputs(node: onnx_ir.Node) -> Iterator[tuple[int, onnx_ir.Value]]:
        for place, value in enumerate(node.inputs):
            yield from ((place, one) for one in _floats((value,)))

    def _cast_weight(self, weight: onnx_ir.Value) -> None:
        """In 16 bits where any reader is, as it is where none is."""
        import onnx_ir

        readers = [reader for reader, _ in weight.uses()]
        dtype = onnx_ir.DataType.FLOAT if all(reader in self.kept for reader in readers) else self.half
        if dtype == self.half:
            array = self._within(weight.const_value.numpy())
            weight.const_value = onnx_ir.tensor(array, dtype=dtype, name=weight.name)
            weight.dtype = dtype

    def _within(self, array: np.ndarray) -> np.ndarray:
        """In 16 bits; numbers beyond their range become the largest one."""
        import onnx_ir

        most = float(onnx_ir.DataType(self.half).max)
        return np.where(np.isfinite(array), np.clip(array, -most, most), array).astype(self.half.numpy())

    def _retype(self, node: onnx_ir.Node) -> None:
        """Have a node of 16 bits say so: what it answers, and what its attributes state."""
        import onnx_ir

        for name, attribute in list(node.attributes.items()):
            if name in ("to", "dtype") and attribute.value == onnx_ir.DataType.FLOAT:
                node.attributes[name] = onnx_ir.AttrInt64(name, self.half)
            elif name == "value" and attribute.type == onnx_ir.AttributeType.TENSOR:
                tensor = attribute.value
                if tensor.dtype == onnx_ir.DataType.FLOAT:
                    number = onnx_ir.tensor(self._within(tensor.numpy()), dtype=self.half)
                    node.attributes[name] = onnx_ir.AttrTensor(name, number)
        if node.op_type == "ConstantOfShape" and "value" not in node.attributes:
            # What ONNX fills with if nothing is said: zeros of float32.
            zero = onnx_ir.tensor(self._within(np.zeros(1, np.float32)), dtype=self.half)
            node.attributes["value"] = onnx_ir.AttrTensor("value", zero)
        for output in _floats(node.outputs):
            output.dtype = self.half

    def _in_other_type(self, value: onnx_ir.Value, dtype: onnx_ir.DataType) -> onnx_ir.Value:
        if value not in self.casts:
            self.casts[value] = self._cast(value, dtype, f"{value.name}_{dtype.name.lower()}")
        return self.casts[value]

    def _cast(self, value: onnx_ir.Value, dtype: onnx_ir.DataType, name: str) -> onnx_ir.Value:
        import onnx_ir

        result = onnx_ir.Value(name=name, type=onnx_ir.TensorType(dtype), shape=value.shape)
        cast = onnx_ir.Node(
            "", "Cast", [value], [onnx_ir.AttrInt64("to", dtype)], outputs=[result], name=f"{name}/Cast"
        )
        producer = value.producer()
        if producer is None:
            self.graph.insert_before(self.graph[0], cast)
        else:
            self.graph.insert_after(producer, cast)
        return result

    def _answer_in_float32(self) -> None:
        import onnx_ir

        for place, value in enumerate(self.graph.outputs):
            if value.dtype == self.half:
                name = value.name
                value.name = f"{name}_{self.half.name.lower()}"
                self.graph.outputs[place] = self._cast(value, onnx_ir.DataType.FLOAT, name or "")
