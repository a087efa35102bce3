"""One text per graph: equal texts mean equal graphs, whatever order the nodes were listed or named in.

Nodes are renumbered depth-first from the outputs, so two listings of the same dataflow print alike. Two graphs that
read different tensors under the same name print alike too; the text is about structure, not values.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx


def canonical_text(graph_module: fx.GraphModule) -> str:
    """The graph as text, one line a node: number, operation, target, arguments, shape."""
    order = list(_depth_first(graph_module.graph))
    number = {node: index for index, node in enumerate(order)}
    return "\n".join(_line(node, number, graph_module) for node in order)


def _depth_first(graph: fx.Graph) -> Iterator[fx.Node]:
    """Inputs in order first (they are the signature), then what outputs and side effects need, then the rest."""
    seen: set[fx.Node] = set()
    roots = [n for n in graph.nodes if n.op == "placeholder"]
    roots += [n for n in graph.nodes if n.op == "output" or (n.is_impure() and n.op != "placeholder")]
    roots += [n for n in graph.nodes if not n.users]  # dead nodes come last: removing them changes the graph
    for root in roots:
        stack = [(root, False)]
        while stack:
            node, expanded = stack.pop()
            if node in seen:
                continue
            if expanded:
                seen.add(node)
                yield node
                continue
            stack.append((node, True))
            stack.extend((parent, False) for parent in reversed(node.all_input_nodes) if parent not in seen)


def _line(node: fx.Node, number: dict[fx.Node, int], graph_module: fx.GraphModule) -> str:
    names = {parent: f"%{number[parent]}" for parent in node.all_input_nodes}
    args = _renamed(node.args, names)
    kwargs = {key: _renamed(value, names) for key, value in sorted(node.kwargs.items())}
    words = [f"%{number[node]}", node.op, _target(node, graph_module), repr(args)]
    if kwargs:
        words.append(repr(kwargs))
    shape = _shape(node)
    return " ".join(words) + (f" -> {shape}" if shape else "")


def _renamed(argument: object, names: dict[fx.Node, str]) -> object:
    """The argument with every node in it replaced by its number."""
    return torch.utils._pytree.tree_map(lambda leaf: _Reference(names[leaf]) if leaf in names else leaf, argument)


class _Reference:
    """A node argument that prints as the node's canonical number."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def _target(node: fx.Node, graph_module: fx.GraphModule) -> str:
    if node.op == "call_module":
        module = graph_module.get_submodule(str(node.target))
        return f"{node.target}:{type(module).__name__}({module.extra_repr()})"
    return str(node.target)


def _shape(node: fx.Node) -> str:
    value = node.meta.get("val")
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}[{', '.join(str(d) for d in value.shape)}]"
    return ""
