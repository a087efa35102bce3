"""The few ways passes edit a graph: copy it, emit a node that knows its shape and origin, own a tensor or module."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ...errors import PassError
from .signature import constant_size

Shape = tuple[int | torch.SymInt, ...]
Arguments: TypeAlias = Sequence[fx.node.Argument]


def copy_graph(graph_module: fx.GraphModule) -> fx.GraphModule:
    """A graph of its own over the same parameters, buffers and submodules."""
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    output = graph.graph_copy(graph_module.graph, values)
    graph.output(output)
    copied = fx.GraphModule(graph_module, graph, class_name=type(graph_module).__name__)
    copied.meta = dict(graph_module.meta)
    copied.training = graph_module.training  # not train(): the submodules are shared
    return copied


def tensor_value(node: fx.Node) -> torch.Tensor:
    """The node's symbolic tensor.

    Raises:
        PassError: the node carries none.
    """
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        raise PassError(f"Node {node.name} carries no tensor shape.", remedy="capture the model again")
    return value


def shape_of(node: fx.Node) -> Shape:
    """The node's symbolic shape; sizes that tracing found to be constant are plain numbers."""
    sizes = ((size, constant_size(size)) for size in tensor_value(node).shape)
    return tuple(size if known is None else known for size, known in sizes)


def answers_of(graph: fx.Graph) -> dict[str, fx.Node]:
    """The graph's answers by name.

    Raises:
        PassError: it answers something else than named tensors.
    """
    answers = graph.output_node().args[0]
    if not isinstance(answers, dict):
        raise PassError("The graph answers no named outputs.", given=type(answers).__name__, expected="a dict")
    return {str(name): value for name, value in answers.items() if isinstance(value, fx.Node)}


def module_path(node: fx.Node) -> str:
    """The dotted path of the module that the node came from; '' for the model itself."""
    return str(node.meta.get("module_path", ""))


def get_tensor(graph_module: fx.GraphModule, name: str) -> torch.Tensor:
    """The parameter or buffer that a get_attr node of this `name` reads."""
    owner, _, leaf = name.rpartition(".")
    value = getattr(graph_module.get_submodule(owner), leaf)
    if not isinstance(value, torch.Tensor):
        raise PassError(f"{name} is not a tensor of the graph.")
    return value


def own_tensor(graph_module: fx.GraphModule, name: str, value: torch.Tensor) -> None:
    """Register `value` under the dotted `name`: a Parameter as a parameter, anything else as a buffer."""
    owner_name, _, leaf = name.rpartition(".")
    owner = _container(graph_module, owner_name)
    if isinstance(value, nn.Parameter):
        owner.register_parameter(leaf, value)
    else:
        owner.register_buffer(leaf, value)


def share_parameters(source: fx.GraphModule, target: fx.GraphModule) -> None:
    """Let `target` read the very parameters of `source` where it owns equal ones of the same names."""
    known = dict(source.named_parameters(remove_duplicate=False))
    for name, parameter in list(target.named_parameters(remove_duplicate=False)):
        other = known.get(name)
        if other is not None and other is not parameter and torch.equal(other, parameter):
            own_tensor(target, name, other)


def own_module(graph_module: fx.GraphModule, name: str, module: nn.Module) -> None:
    """Register `module` under the dotted `name`."""
    owner_name, _, leaf = name.rpartition(".")
    _container(graph_module, owner_name).add_module(leaf, module)


def _container(root: nn.Module, path: str) -> nn.Module:
    for part in filter(None, path.split(".")):
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    return root


def emit(graph: fx.Graph, target: Callable[..., Any], args: Arguments, *, origin: str, like: fx.Node) -> fx.Node:
    """Add a call_function node at the insertion point, its shape inferred, its provenance taken from `like`."""
    node = graph.call_function(target, tuple(args))
    values = fx.node.map_arg(tuple(args), lambda argument: argument.meta["val"])
    with _fake_mode(like):
        node.meta["val"] = target(*values)
    return stamp(node, origin=origin, like=like)


def copy_value(graph: fx.Graph, node: fx.Node, replaced: Mapping[fx.Node, fx.Node]) -> fx.Node:
    """Another node like `node` at the insertion point, with some of its operands replaced."""
    made = graph.node_copy(node, lambda operand: replaced.get(operand, operand))
    made.meta = dict(node.meta)
    return made


def emit_attribute(graph_module: fx.GraphModule, name: str, *, origin: str, like: fx.Node) -> fx.Node:
    """Add a get_attr node that reads the tensor `name`."""
    node = graph_module.graph.get_attr(name)
    mode = _fake_mode(like)
    node.meta["val"] = mode.from_tensor(get_tensor(graph_module, name), static_shapes=True)
    return stamp(node, origin=origin, like=like)


def emit_module(
    graph: fx.Graph,
    name: str,
    args: Sequence[fx.node.Argument],
    *,
    shape: Shape,
    dtype: torch.dtype,
    origin: str,
    like: fx.Node,
) -> fx.Node:
    """Add a call_module node whose output has `shape` and `dtype`."""
    node = graph.call_module(name, tuple(args))
    with _fake_mode(like):
        node.meta["val"] = tensor_value(like).new_empty(shape, dtype=dtype)
    return stamp(node, origin=origin, like=like)


def stamp(node: fx.Node, *, origin: str, like: fx.Node) -> fx.Node:
    """Give a new node its provenance: the module `like` came from, and the pass that made it."""
    for key in ("nn_module_stack", "module_path", "stack_trace"):
        if key in like.meta:
            node.meta[key] = like.meta[key]
    node.meta["origin"] = origin
    return node


def _fake_mode(like: fx.Node) -> FakeTensorMode:
    value = like.meta.get("val")
    mode = getattr(value, "fake_mode", None)
    if not isinstance(mode, FakeTensorMode):
        raise PassError(f"Node {like.name} carries no symbolic shape to infer new ones from.")
    return mode
