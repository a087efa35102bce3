"""Logit sites: the adapters of the query and key that an attention over tokens multiplies, layer by layer.

    linear ─▶ add(adapter) ─▶ view, transpose, … ─▶ q (B,h,T,e) ─▶ attention

Only attention in one operator, whose operands come from one layer each; a fused query-key-value layer is a miss.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from ..graph.edit import shape_of
from .adapters import AdapterSite, Miss
from .attention import Attention, find_attention
from .scored_layers import ScoredLayer

_LINEAR = torch.ops.aten.linear.default
_AXES = 4  # (B, h, T, e)


@dataclass(frozen=True)
class LogitSite:
    """The low-rank factors of one layer's attention logits.

    Attributes:
        query, key: the sites; heads: h.
    """

    query: AdapterSite
    key: AdapterSite
    heads: int


def find_logit_sites(graph_module: fx.GraphModule, layers: tuple[ScoredLayer, ...]) -> tuple[LogitSite, ...] | Miss:
    """One for every scored layer, in order; the first layer that has none."""
    attentions = [item for item in find_attention(graph_module) if item.is_fused and len(shape_of(item.query)) == _AXES]
    found = []
    for layer in layers:
        sites = {site.add: site for site in layer.sites}
        pairs = [pair for item in attentions if (pair := _pair(item, sites)) is not None]
        if not pairs:
            return Miss(f"layer {layer.layer}", "no attention in one operator has LoRA on its query and on its key")
        found.append(pairs[0])
    return tuple(found)


def _pair(attention: Attention, sites: dict[fx.Node, AdapterSite]) -> LogitSite | None:
    query, key = (_behind(node, sites) for node in (attention.query, attention.keys))
    heads = shape_of(attention.query)[1]
    if query is None or key is None or not isinstance(heads, int) or query.d_out != key.d_out:
        return None
    return LogitSite(query, key, heads) if query is not key else None


def _behind(node: fx.Node, sites: dict[fx.Node, AdapterSite]) -> AdapterSite | None:
    """The one adapted layer that a value comes from, looking through everything that is no linear layer."""
    found: set[fx.Node] = set()
    seen: set[fx.Node] = set()
    pending = [node]
    while pending:
        current = pending.pop()
        if current in seen:
            continue
        seen.add(current)
        if current in sites or current.target is _LINEAR:
            found.add(current)
        else:
            pending += current.all_input_nodes
    return sites.get(next(iter(found))) if len(found) == 1 else None
