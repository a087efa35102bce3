"""A graph in float32 whose products run in 16 bits: what torch's autocast does to a model, done to its graph.

    linear(x, W, b)                →    linear(half(x), half(W), half(b))
    answer {name: value}           →    answer {name: float32(value)}

Norms, sums, scores and what else is no product take the wider type of what they are given, so the sums of layers stay
float32. Approximate, to the precision of the type. Weights are cast in the graph; a compiler folds that.
"""

from __future__ import annotations

import copy
import warnings

import torch
from torch import Tensor, fx

from ...runtime.ops.update_ops import routed_linear

aten = torch.ops.aten

_PRODUCTS = frozenset(
    {
        aten.linear.default,
        aten.matmul.default,
        aten.mm.default,
        aten.bmm.default,
        aten.addmm.default,
        aten.baddbmm.default,
        aten.scaled_dot_product_attention.default,
        routed_linear._opoverload,
    }
)


def half_products(graph_module: fx.GraphModule, half: torch.dtype) -> fx.GraphModule:
    """A graph with the weights of `graph_module`, of ATen operators, that casts; to be traced.

    Args:
        half: torch.float16 or torch.bfloat16.
    """
    with warnings.catch_warnings():
        # torch's own: copying the record of how answers are nested
        warnings.simplefilter("ignore", FutureWarning)
        graph = copy.deepcopy(graph_module.graph)
    for node in list(graph.nodes):
        if node.target in _PRODUCTS:
            with graph.inserting_before(node):
                _cast_operands(node, half)
        elif node.target == aten._assert_tensor_metadata.default:
            graph.erase_node(node)  # it states a type of before
    output = graph.output_node()
    with graph.inserting_before(output):
        _cast_operands(output, torch.float32)
    return fx.GraphModule(graph_module, graph, class_name=type(graph_module).__name__)


def _cast_operands(node: fx.Node, dtype: torch.dtype) -> None:
    def cast(operand: fx.Node) -> fx.Node:
        return node.graph.call_function(_as, (operand, dtype))

    node.args, node.kwargs = fx.node.map_arg(node.args, cast), fx.node.map_arg(node.kwargs, cast)


def _as(value: Tensor, dtype: torch.dtype) -> Tensor:
    """In `dtype`, unless it holds no floats, as a mask may."""
    return value.to(dtype) if value.is_floating_point() else value
