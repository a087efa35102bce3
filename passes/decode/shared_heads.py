"""Share heads: a decode step reads every cached head once, whatever number of queries share it.

    k (B, H_kv, N, d) ─▶ unsqueeze ─▶ expand ─▶ reshape (B, H, N, d) ─▶ sdpa(q (B, H, T, d), k, v, mask (B, 1, T, N))
 →  q (B, H, T, d) ─▶ reshape (B, H_kv, H/H_kv·T, d) ─▶ sdpa(·, k, v, mask repeated along its rows) ─▶ reshape back

Sound: rows of an attention do not know each other, so the queries of one head's group may be rows of one head. A cache
of N rows is much longer than the T new tokens, so their masks are cheaper to repeat than keys and values to copy.

Leaves alone attentions with a head for every query, and those whose mask differs from head to head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import torch
from torch import fx

from ..contract import Pass
from ..find.adapters import Miss
from ..find.cache_rows import CacheRows, find_cache_rows
from ..graph.edit import emit, shape_of
from ..report import Outcome

aten = torch.ops.aten
_Operator: TypeAlias = Callable[..., Any]
_SDPA = aten.scaled_dot_product_attention.default


@dataclass(frozen=True)
class ShareHeads(Pass):
    """Take the copies of keys and values out of a decode graph."""

    after: ClassVar[tuple[str, ...]] = ("ReadCache",)

    def apply(self, graph_module: fx.GraphModule) -> Outcome:
        """Rewrite every attention over shared heads."""
        rows = find_cache_rows(graph_module)
        shared = [] if isinstance(rows, Miss) else [row for row in rows if _is_shared(row)]
        masks: dict[tuple[fx.Node, int], fx.Node] = {}
        for row in shared:
            self._share(graph_module.graph, row, masks)
        graph_module.graph.eliminate_dead_code(is_impure_node=lambda n: n.op in ("placeholder", "output"))
        return Outcome(tuple(row.attention.node.name for row in shared))

    def _share(self, graph: fx.Graph, row: CacheRows, masks: dict[tuple[fx.Node, int], fx.Node]) -> None:
        attention, node = row.attention, row.attention.node
        key, value = row.key, row.value
        mask = row.visible if attention.mask is None else attention.mask  # it has one
        heads, group = int(shape_of(key)[1]), int(shape_of(attention.query)[1]) // int(shape_of(key)[1])

        def add(target: _Operator, *args: fx.node.Argument) -> fx.Node:
            return emit(graph, target, args, origin=self.name, like=node)

        with graph.inserting_before(node):
            batch, tokens = (add(aten.sym_size.int, attention.query, axis) for axis in (0, 2))
            query = add(aten.reshape.default, attention.query, [batch, heads, -1, int(shape_of(attention.query)[3])])
            if (mask, group) not in masks:  # (B, 1, T, N) → (B, 1, group·T, N), once for all layers that share it
                masks[mask, group] = add(aten.cat.default, [mask] * group, 2)
            answer = add(_SDPA, query, key, value, masks[mask, group], *node.args[4:])
            answer.kwargs = {name: given for name, given in node.kwargs.items() if name not in ("attn_mask",)}
            whole = add(aten.reshape.default, answer, [batch, heads * group, tokens, int(shape_of(value)[3])])
        node.replace_all_uses_with(whole)
        graph.erase_node(node)


def _is_shared(row: CacheRows) -> bool:
    """Whether several queries read one head, under one mask."""
    attention = row.attention
    copied = row.key is not attention.keys and row.value is not attention.values
    return copied and attention.node.target is _SDPA and attention.mask is not None and shape_of(attention.mask)[1] == 1
