"""Rules that an ONNX graph must keep to be built by TensorRT, checked on the graph alone; nothing is installed for it.

    NonZero                      no such layer in TensorRT-RTX, and a plugin in TensorRT
    ScatterND, ScatterElements   with a reduction: no such layer
    TopK on one axis             refused by the builder
    TopK with k > n              NOT refused by the builder: undefined answers when it runs, so it must be proved here

k <= n counts as proved where k is a constant no larger than the least n, the size of the axis itself, a Min with it,
or what another TopK just chose with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...errors import missing_package
from .axes import AxisRanges

if TYPE_CHECKING:
    import onnx

_Sizes = tuple[int | str | None, ...]
_SCATTERS = ("ScatterND", "ScatterElements")
_RESHAPING = ("Reshape", "Squeeze", "Unsqueeze", "Identity")


@dataclass(frozen=True)
class Finding:
    """One node that breaks a rule."""

    node: str
    operator: str
    problem: str

    def __str__(self) -> str:
        return f"{self.operator} {self.node!r}: {self.problem}"


@dataclass(frozen=True)
class _Inlined:
    """The graph without local functions: what made each value, its sizes, and the constants."""

    makers: Mapping[str, onnx.NodeProto]
    sizes: Mapping[str, _Sizes]
    constants: Mapping[str, tuple[int, ...]]


def lint(model: onnx.ModelProto, axes: AxisRanges) -> tuple[Finding, ...]:
    """Every node of `model`, local functions inlined, that TensorRT refuses or would answer wrongly.

    Args:
        model: weights may be in other files.
        axes: ranges of the open axes; one that is missing may have any size from 1.
    """
    try:
        import onnx
        from onnx import inliner
    except ImportError as error:
        raise missing_package("onnx", extra="onnxruntime", feature="Checking a graph for TensorRT") from error

    flat = onnx.shape_inference.infer_shapes(inliner.inline_local_functions(model), data_prop=True)
    known = _known(flat.graph)
    return tuple(
        Finding(node.name or node.output[0], node.op_type, problem)
        for node in flat.graph.node
        if (rule := _RULES.get(node.op_type)) is not None
        for problem in rule(node, known, axes)
    )


def _nonzero(node: onnx.NodeProto, known: _Inlined, axes: AxisRanges) -> Iterator[str]:  # noqa: ARG001
    yield "no such layer; count with CumSum and scatter the positions instead"


def _scatter(node: onnx.NodeProto, known: _Inlined, axes: AxisRanges) -> Iterator[str]:  # noqa: ARG001
    reduction = next((a.s.decode() for a in node.attribute if a.name == "reduction"), "none")
    if reduction != "none":
        yield f"no layer scatters with the reduction {reduction!r}"


def _topk(node: onnx.NodeProto, known: _Inlined, axes: AxisRanges) -> Iterator[str]:
    sizes = known.sizes.get(node.input[0])
    if sizes is not None and len(sizes) == 1:
        yield "the builder refuses tensors of one axis"
        return
    axis = next((a.i for a in node.attribute if a.name == "axis"), -1)
    constant = known.constants.get(node.input[1])
    least = _least(sizes[axis], axes) if sizes is not None else None
    if constant is not None:
        if least is None or constant[0] > least:
            yield f"k is {constant[0]} and the axis may have only {'an unknown number' if least is None else least}"
    elif not _is_capped(node, axis, known) and not _ranks_a_choice_again(node, axis, known):
        yield "k comes from data or sizes, and nothing keeps it within the axis; cap it with Min(k, size of the axis)"


def _least(size: int | str | None, axes: AxisRanges) -> int | None:
    """The least that a size can be; None if nothing is known about it."""
    if isinstance(size, str):
        return axes[size].least if size in axes else 1
    return size


def _is_capped(node: onnx.NodeProto, axis: int, known: _Inlined) -> bool:
    """Whether k is the size of the very axis, or a Min of which one side is."""
    cap = known.makers.get(node.input[1])
    sides = cap.input if cap is not None and cap.op_type == "Min" else node.input[1:2]
    return any(_is_size_of(side, node.input[0], axis, known) for side in sides)


def _ranks_a_choice_again(node: onnx.NodeProto, axis: int, known: _Inlined) -> bool:
    """Whether the tensor is what another TopK chose with the same k along the same axis, which is that long."""
    first = known.makers.get(node.input[0])
    if first is None or first.op_type != "TopK":
        return False
    return first.input[1] == node.input[1] and axis == next((a.i for a in first.attribute if a.name == "axis"), -1)


def _is_size_of(value: str, tensor: str, axis: int, known: _Inlined) -> bool:
    """Whether `value` is the size of axis `axis` of `tensor`."""
    maker = known.makers.get(value)
    while maker is not None and maker.op_type in _RESHAPING:
        maker = known.makers.get(maker.input[0])
    sizes = known.sizes.get(tensor)
    place = _axis_read(maker, known) if maker is not None else None
    if maker is None or sizes is None or place is None:
        return False
    shape = maker if maker.op_type == "Shape" else known.makers[maker.input[0]]
    same = _uncast(shape.input[0], known) == _uncast(tensor, known)
    return bool(same and place % len(sizes) == axis % len(sizes))


def _uncast(tensor: str, known: _Inlined) -> str:
    """The tensor before casts, which has the same sizes."""
    while (maker := known.makers.get(tensor)) is not None and maker.op_type == "Cast":
        tensor = maker.input[0]
    return tensor


def _axis_read(maker: onnx.NodeProto, known: _Inlined) -> int | None:
    """The one axis whose size Shape, or Gather on a whole Shape, answers."""
    bounds = {a.name: a.i for a in maker.attribute}
    if maker.op_type == "Shape" and bounds.get("end") == bounds.get("start", 0) + 1:
        return int(bounds.get("start", 0))
    source = known.makers.get(maker.input[0]) if maker.op_type == "Gather" else None
    whole = source is not None and source.op_type == "Shape" and not any(a.i for a in source.attribute)
    place = known.constants.get(maker.input[1], ()) if whole else ()
    return place[0] if len(place) == 1 else None


_RULES: Mapping[str, Callable[[onnx.NodeProto, _Inlined, AxisRanges], Iterator[str]]] = {
    "NonZero": _nonzero,
    "TopK": _topk,
    **dict.fromkeys(_SCATTERS, _scatter),
}


def _known(graph: onnx.GraphProto) -> _Inlined:
    values = [*graph.input, *graph.value_info, *graph.output]
    sizes = {v.name: tuple(map(_size, v.type.tensor_type.shape.dim)) for v in values if _has_shape(v)}
    sizes |= {weight.name: tuple(weight.dims) for weight in graph.initializer}
    return _Inlined({out: node for node in graph.node for out in node.output if out}, sizes, dict(_constants(graph)))


def _has_shape(value: onnx.ValueInfoProto) -> bool:
    return bool(value.type.tensor_type.HasField("shape"))


def _size(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    return int(dim.dim_value) if dim.HasField("dim_value") else dim.dim_param or None


def _constants(graph: onnx.GraphProto) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The small whole numbers of the graph, by name."""
    from onnx import TensorProto, numpy_helper

    for weight in graph.initializer:
        if weight.data_type == TensorProto.INT64 and weight.data_location != TensorProto.EXTERNAL:
            yield weight.name, tuple(numpy_helper.to_array(weight).flatten().tolist())
    for node in graph.node:
        if node.op_type == "Constant":
            yield from ((node.output[0], numbers) for a in node.attribute if (numbers := _whole_numbers(a)))


def _whole_numbers(attribute: onnx.AttributeProto) -> tuple[int, ...]:
    from onnx import TensorProto, numpy_helper

    if attribute.name == "value" and attribute.t.data_type == TensorProto.INT64:
        return tuple(numpy_helper.to_array(attribute.t).flatten().tolist())
    return {"value_int": (int(attribute.i),), "value_ints": tuple(attribute.ints)}.get(attribute.name, ())
