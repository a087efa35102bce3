"""States in a graph which axes of its inputs are the same axis, where the operators alone do not say so.

An attention mask that is only read through an index gives the exporter no reason to believe that its batch is the
batch of the token ids: it would get sizes of its own, under other names.
"""

from __future__ import annotations

import copy
import operator
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, fx


def state_shared_axes(graph_module: fx.GraphModule, examples: Sequence[Tensor]) -> fx.GraphModule:
    """A graph with the weights of `graph_module` that begins by checking that shared axes have one size.

    Args:
        graph_module: one placeholder per example, in order.
        examples: inputs (B, …). Axis 0 is shared by all inputs of the first one's batch size, axis 1 by all
            matrices of the first matrix's length.
    """
    with warnings.catch_warnings():
        # torch's own: copying the record of how the inputs are nested
        warnings.simplefilter("ignore", FutureWarning)
        graph = copy.deepcopy(graph_module.graph)
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    pairs = [
        *_same_axis(placeholders, examples, 0, [value.dim() >= 1 for value in examples]),
        *_same_axis(placeholders, examples, 1, [value.dim() == 2 for value in examples]),  # noqa: PLR2004
    ]
    body = next(node for node in graph.nodes if node.op not in ("placeholder", "get_attr"))
    with graph.inserting_before(body):
        for first, other, axis in pairs:
            sizes = [graph.call_function(torch.ops.aten.sym_size.int, (node, axis)) for node in (first, other)]
            graph.call_function(torch._check, (graph.call_function(operator.eq, tuple(sizes)),))
    return fx.GraphModule(graph_module, graph, class_name=type(graph_module).__name__)


def _same_axis(
    nodes: Sequence[fx.Node], examples: Sequence[Tensor], axis: int, shares: Sequence[bool]
) -> list[tuple[fx.Node, fx.Node, int]]:
    """The pairs (first, other, axis) of inputs that share `axis` with the first input that can."""
    members = [(node, value) for node, value, share in zip(nodes, examples, shares, strict=True) if share]
    if not members:
        return []
    (first, example), rest = members[0], members[1:]
    return [(first, node, axis) for node, value in rest if value.shape[axis] == example.shape[axis]]
