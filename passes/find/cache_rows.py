"""What a decoder would keep of its tokens: the keys and values of every causal attention, before heads share them.

    k (B, H_kv, T, d) ─▶ [unsqueeze ─▶ expand ─▶ reshape: one head for several queries] ─▶ attention ◀─ visible_keys

Found by structure. An attention whose mask is no `visible_keys` of `passes/graph/capture_decoder.py`, or that is
spelled out in products and a softmax, is a miss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx

from ..graph.edit import shape_of
from .adapters import Miss
from .attention import Attention, find_attention
from .last_token import VISIBLE
from .token_rules import size_key

aten = torch.ops.aten
_RANK = 4
_REPEATS = (
    aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.expand.default,
    aten.alias.default,
)


@dataclass(frozen=True)
class CacheRows:
    """One attention's part of a cache.

    Attributes:
        attention: who reads it; key, value: (B, H_kv, T, d); visible: the `visible_keys` that its mask comes from.
    """

    attention: Attention
    key: fx.Node
    value: fx.Node
    visible: fx.Node


def find_cache_rows(graph_module: fx.GraphModule) -> tuple[CacheRows, ...] | Miss:
    """Every causal attention, in graph order; or why the graph has no cache."""
    found = []
    for attention in find_attention(graph_module):
        if attention.mask is None:
            return Miss(attention.node.name, "its mask is none of explicit positions")
        visible = visible_of(attention.mask)
        if visible is None:
            return Miss(attention.node.name, "its mask does not come from visible_keys")
        if attention.values is None:
            return Miss(attention.node.name, "attention in several operators: choose attn_implementation='sdpa'")
        key, value = unrepeated(attention.keys), unrepeated(attention.values)
        if not _is_rows(key, visible) or not _is_rows(value, visible):
            return Miss(attention.node.name, "its keys and values are not (batch, heads, tokens, channels)")
        found.append(CacheRows(attention, key, value, visible))
    return tuple(found) if found else Miss("model", "no attention over earlier tokens")


def visible_of(mask: fx.Node) -> fx.Node | None:
    """The one `visible_keys` that a mask is computed from."""
    pending, found = [mask], dict[fx.Node, None]()
    seen: set[fx.Node] = set()
    while pending:
        node = pending.pop()
        if node.target is VISIBLE:
            found[node] = None
        elif node not in seen:
            seen.add(node)
            pending += node.all_input_nodes
    return next(iter(found)) if len(found) == 1 else None


def key_positions(rows: Sequence[CacheRows]) -> frozenset[fx.Node]:
    """Where keys stand, (B, T), of graphs that tell it apart from where queries stand: biases are made of it."""
    sides = [row.visible.args[:2] for row in rows]
    return frozenset(keys for queries, keys in sides if isinstance(keys, fx.Node) and keys is not queries)


def unrepeated(states: fx.Node) -> fx.Node:
    """States as they are before each head is repeated for the queries that share it."""
    node = states
    while node.target in _REPEATS or _is_whole_slice(node):
        node = node.all_input_nodes[0]
    if node.target is not aten.unsqueeze.default or len(shape_of(node)) != _RANK + 1:
        return states
    node = node.all_input_nodes[0]
    while _is_whole_slice(node):
        node = node.all_input_nodes[0]
    return node


def _is_whole_slice(node: fx.Node) -> bool:
    if node.target is not aten.slice.Tensor:
        return False
    return _sizes(node) == _sizes(node.all_input_nodes[0])


def _is_rows(states: fx.Node, visible: fx.Node) -> bool:
    batch, _, _, rows = _sizes(visible)
    sizes = _sizes(states)
    return len(sizes) == _RANK and sizes[0] == batch and sizes[2] == rows


def _sizes(node: fx.Node) -> tuple[object, ...]:
    return tuple(size_key(size) for size in shape_of(node))
