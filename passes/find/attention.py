"""Attention of a graph: every place where tokens weigh other tokens, and where its mask is held.

    fused        sdpa(q, k, v, mask), or AttentionDropout(q, k, v, mask) in a graph that trains
    decomposed   softmax(add(scores, mask), dim)            the mask is additive, one for all layers as a rule
                 softmax(masked_fill(scores, ~mask, min))   the scores are filled; likewise where(mask, scores, min)
                 softmax(scores, dim)                       no mask

Recognised by operators alone; which axis counts tokens is not asked here (`token_flow.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from ...models.regularization import AttentionDropout
from ..graph.edit import get_tensor, shape_of

aten = torch.ops.aten
_SDPA = aten.scaled_dot_product_attention.default
SOFTMAX = (aten.softmax.int, aten._softmax.default, aten._safe_softmax.default)
_MASKING = (
    aten.add.Tensor,
    aten.masked_fill.Scalar,
    aten.masked_fill.Tensor,
    aten.where.self,
    aten.where.ScalarOther,
)
_PRODUCTS = (aten.linear.default, aten.matmul.default, aten.bmm.default, aten.addmm.default, aten.mm.default)
_SAME_VALUES = (
    aten.to.dtype,
    aten.to.device,
    aten._to_copy.default,
    aten.contiguous.default,
    aten.clone.default,
    aten.alias.default,
)
_ORDER = (aten.le.Tensor, aten.lt.Tensor, aten.ge.Tensor, aten.gt.Tensor, aten.tril.default, aten.triu.default)
_MASK, _CAUSAL = 3, 5
_MATRIX = 2


@dataclass(frozen=True)
class Attention:
    """One place where tokens attend.

    Attributes:
        node: the fused operator, or the softmax.
        query, keys: fused: (B, H, T, d) and (B, H, S, d); decomposed: both are what the softmax reads, (…, T, S).
        values: fused: (B, H, S, d); None for a softmax, whose weights may go anywhere.
        key_axis: the axis of `keys` that counts keys.
        holder: the node that applies the mask (the fused operator, an add, a masked_fill, a where); where nothing
            does, the softmax.
        mask: what `holder` applies and a gate may join: boolean, true where visible, or additive; None where there is
            none, and where the holder fills scores.
        scores: what `holder` masks, (…, T, S); None where one operator does all of it.
        causal: what forbids queries to see later keys, in words; '' where nothing does.
    """

    node: fx.Node
    query: fx.Node
    keys: fx.Node
    values: fx.Node | None
    key_axis: int
    holder: fx.Node
    mask: fx.Node | None
    scores: fx.Node | None = None
    causal: str = ""

    @property
    def is_fused(self) -> bool:
        """Whether one operator does all of it."""
        return self.values is not None


def find_attention(graph_module: fx.GraphModule) -> tuple[Attention, ...]:
    """Every attention, in graph order; a softmax over anything else (a router's) is listed like any other."""
    found = []
    for node in graph_module.graph.nodes:
        if is_fused(graph_module, node):
            found.append(_fused(graph_module, node))
        elif node.op == "call_function" and node.target in SOFTMAX:
            found.append(_decomposed(graph_module, node))
    return tuple(found)


def is_fused(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the node is attention in one operator."""
    if node.op == "call_module":
        return isinstance(graph_module.get_submodule(str(node.target)), AttentionDropout)
    return node.target is _SDPA


def fused_mask(node: fx.Node) -> fx.Node | None:
    """The mask of an attention in one operator."""
    value = node.args[_MASK] if len(node.args) > _MASK else node.kwargs.get("attn_mask", node.kwargs.get("mask"))
    return value if isinstance(value, fx.Node) else None


def _fused(graph_module: fx.GraphModule, node: fx.Node) -> Attention:
    query, keys, values = (argument for argument in node.args[:3] if isinstance(argument, fx.Node))
    mask = fused_mask(node)
    flagged = node.kwargs.get("is_causal") or (len(node.args) > _CAUSAL and node.args[_CAUSAL])
    causal = "is_causal=True" if flagged else order_in(graph_module, mask)
    return Attention(node, query, keys, values, len(shape_of(keys)) - 2, node, mask, None, causal)


def _decomposed(graph_module: fx.GraphModule, node: fx.Node) -> Attention:
    weighed = node.all_input_nodes[0]
    axis = int(node.args[1]) % len(shape_of(weighed))  # type: ignore[arg-type]  # the operator's schema says int
    applied = _masked(weighed)
    if applied is None:
        return Attention(node, weighed, weighed, None, axis, node, None, weighed)
    holder, scores, other = applied
    mask = other if holder.target is aten.add.Tensor else None
    causal = ""
    while applied is not None and not causal:  # masks may be applied one after the other
        causal = order_in(graph_module, applied[2])
        applied = _masked(applied[1])
    return Attention(node, weighed, weighed, None, axis, holder, mask, scores, causal)


def _masked(weighed: fx.Node) -> tuple[fx.Node, fx.Node, fx.Node] | None:
    """(what masks scores, the scores, what they are masked with); None where nothing does."""
    holder = weighed
    while holder.target in _SAME_VALUES:
        holder = holder.all_input_nodes[0]
    computed = [operand for operand in holder.all_input_nodes if _is_computed(operand)]
    others = [operand for operand in holder.all_input_nodes if operand not in computed]
    if holder.target not in _MASKING or len(computed) != 1 or not others:
        return None
    return holder, computed[0], others[0]


def order_in(graph_module: fx.GraphModule, mask: fx.Node | None) -> str:
    """What in a mask compares the order of two positions, in words; '' where nothing does."""
    for node in _ancestors(mask):
        if node.target in _ORDER:
            return f"its mask compares positions in {node.name}"
        if node.op == "get_attr" and _is_triangle(get_tensor(graph_module, str(node.target))):
            return f"its mask reads the triangle {node.target}"
    return ""


def _is_triangle(value: torch.Tensor) -> bool:
    square = value.dim() >= _MATRIX and value.shape[-1] == value.shape[-2] > 1
    return square and torch.equal(value, value.tril()) and not torch.equal(value, value.triu())


def _is_computed(node: fx.Node) -> bool:
    """Whether a node holds scores: anything that a product of the model's states went into."""
    return any(ancestor.target in _PRODUCTS for ancestor in _ancestors(node))


def _ancestors(node: fx.Node | None) -> list[fx.Node]:
    """The node and all that it is computed from."""
    found: dict[fx.Node, None] = {}
    pending = [] if node is None else [node]
    while pending:
        current = pending.pop()
        if current not in found:
            found[current] = None
            pending += current.all_input_nodes
    return list(found)
