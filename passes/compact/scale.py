"""A site's scale as a tensor, so that it can change without a new graph."""

from __future__ import annotations

import torch
from torch import fx

from ..find.adapters import AdapterSite
from ..graph.edit import emit_attribute, get_tensor, own_tensor


def scale_tensor(graph_module: fx.GraphModule, site: AdapterSite, *, origin: str) -> fx.Node:
    """The node that reads s, (), at the graph's insertion point."""
    if isinstance(site.scale, fx.Node):
        return site.scale
    matrix = str(site.lora_a.target)
    name = f"{matrix.removesuffix('.weight')}.scale"
    like = get_tensor(graph_module, matrix)
    own_tensor(graph_module, name, torch.tensor(site.scale, dtype=like.dtype, device=like.device))
    return emit_attribute(graph_module, name, origin=origin, like=site.add)
