"""Dynamo's graph → a graph over tensors alone, whose weights are its own and whose numbers are written in.

    (n, x, weight, eps)   norm(linear(view(x, n), weight), eps.item())
    (x)                   norm(linear(view(x, sym_size(x, 0)), self.weight), 1e-5)

Sound for calls that pass the same weights and numbers: `TensorGraph` says where in a call they stand, so that whoever
runs the graph can compare. A number is a size that no tensor has, or a tensor that is read by `item()`, which is what
`dynamic=True` makes of a Python float.

Refuses answers that are no tensors, such as the sizes that a graph break passes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map_only

from ...errors import CaptureError
from ..graph.edit import copy_graph, own_tensor
from ..graph.signature import constant_size

aten = torch.ops.aten
_VALUE = "example_value"  # Dynamo's name for a node's symbolic value
_ITEM = ("item", Tensor.item, aten.item.default)

Number: TypeAlias = int | float | bool


@dataclass
class TensorGraph:
    """A graph, and the places of a call, counted from 0, that it stands for.

    Attributes:
        graph_module: takes the tensors at `fed`, in this order, and returns a tuple of tensors.
        fed: the places of its inputs; varying: of each of them, the axes whose size varies.
        weights: name of a parameter of the graph → its place.
        numbers: place → the number that is written in.
        answers: for each answer to the call, the place that is handed back, or None for the graph's next own answer.
    """

    graph_module: fx.GraphModule
    fed: list[int] = field(default_factory=list)
    varying: list[tuple[int, ...]] = field(default_factory=list)
    weights: dict[str, int] = field(default_factory=dict)
    numbers: dict[int, Number] = field(default_factory=dict)
    answers: tuple[int | None, ...] = ()


def tensor_graph(traced: fx.GraphModule, call: Sequence[object]) -> TensorGraph:
    """The graph that `traced` is on calls with the weights and numbers of `call`.

    Args:
        traced: as Dynamo hands it to a backend; call: what stands for its placeholders, with real tensors.

    Raises:
        CaptureError: an answer that is no tensor.
    """
    result = TensorGraph(copy_graph(traced).eval())
    graph = result.graph_module.graph
    holes = list(graph.find_nodes(op="placeholder"))
    result.answers = _keep_own_answers(graph, {hole: place for place, hole in enumerate(holes)})
    sizes = _sizes(holes)
    for place, (hole, given) in enumerate(zip(holes, call, strict=True)):
        if is_weight(given):
            result.weights[hole.name] = place
            _own(result.graph_module, hole, given)
        elif isinstance(given, Tensor):
            if _write_items(hole, given):
                result.numbers[place] = given.item()
        elif (source := sizes.get(_symbol(hole))) is not None:
            _read_size(hole, *source)
        elif isinstance(given, (int, float)) and hole.users:
            result.numbers[place] = given
            _write(hole, given)
    _feed(result, holes, call)
    result.graph_module.recompile()
    return result


def is_weight(given: object) -> bool:
    """Whether what a call passes is one of the model's weights, whose changes torch counts."""
    return isinstance(given, nn.Parameter) and not given.is_inference()


def _keep_own_answers(graph: fx.Graph, places: Mapping[fx.Node, int]) -> tuple[int | None, ...]:
    """Let the graph answer what it computes, without what it was given; see `TensorGraph.answers`.

    Raises:
        CaptureError: an answer that is no tensor.
    """
    output = graph.output_node()
    wanted = output.args[0]
    own = []
    for answer in wanted if isinstance(wanted, (tuple, list)) else (wanted,):
        if not isinstance(answer, fx.Node) or not isinstance(answer.meta.get(_VALUE), Tensor):
            raise CaptureError(
                "The graph answers something that is no tensor, as it does where torch.compile breaks it.",
                given=str(answer),
                expected="tensors",
                remedy="torch.compile(…, fullgraph=True) names the break",
            )
        if answer not in places:
            own.append(answer)
    output.args = (tuple(own),)
    return tuple(places.get(answer) for answer in wanted)  # type: ignore[union-attr, arg-type]  # nodes, by now


def _sizes(holes: Sequence[fx.Node]) -> dict[str, tuple[fx.Node, int]]:
    """Symbol → a tensor that is passed, and the axis that has this size."""
    found: dict[str, tuple[fx.Node, int]] = {}
    for hole in holes:
        for axis in _varying(hole):
            found.setdefault(str(hole.meta[_VALUE].shape[axis]), (hole, axis))
    return found


def _symbol(hole: fx.Node) -> str:
    return str(hole.meta.get(_VALUE))


def _varying(hole: fx.Node) -> tuple[int, ...]:
    """Axes of a size that no guard of the trace fixes."""
    value = hole.meta.get(_VALUE)
    shape = value.shape if isinstance(value, Tensor) else ()
    return tuple(axis for axis, size in enumerate(shape) if constant_size(size) is None)


def _own(module: fx.GraphModule, hole: fx.Node, weight: object) -> None:
    """Read a weight of the graph's own instead of a placeholder."""
    own_tensor(module, hole.name, weight)  # type: ignore[arg-type]  # `is_weight` has seen a parameter
    with module.graph.inserting_before(_body(module.graph)):
        hole.replace_all_uses_with(module.graph.get_attr(hole.name))


def _read_size(hole: fx.Node, tensor: fx.Node, axis: int) -> None:
    """Read a size off its tensor."""
    with hole.graph.inserting_before(_body(hole.graph)):
        hole.replace_all_uses_with(hole.graph.call_function(aten.sym_size.int, (tensor, axis)))


def _body(graph: fx.Graph) -> fx.Node:
    first: fx.Node = next(node for node in graph.nodes if node.op not in ("placeholder", "get_attr"))
    return first


def _write_items(hole: fx.Node, given: Tensor) -> bool:
    """Write in what `item()` reads of a tensor; whether anything does."""
    readers = [user for user in hole.users if user.target in _ITEM]
    for reader in readers:
        _write(reader, given.item())
        hole.graph.erase_node(reader)
    return bool(readers)


def _write(node: fx.Node, number: Number) -> None:
    """Put `number` wherever `node` is read."""
    for user in list(node.users):
        user.args = tree_map_only(fx.Node, lambda read: number if read is node else read, user.args)
        user.kwargs = tree_map_only(fx.Node, lambda read: number if read is node else read, user.kwargs)


def _feed(result: TensorGraph, holes: Sequence[fx.Node], call: Sequence[object]) -> None:
    """Drop the placeholders that nothing reads; the others are inputs."""
    for place, hole in enumerate(holes):
        if not hole.users:
            result.graph_module.graph.erase_node(hole)
        elif isinstance(call[place], Tensor):
            result.fed.append(place)
            result.varying.append(_varying(hole))
