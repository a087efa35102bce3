"""Gated sites: which router output gates which adapter site.

A gate reads `router[:, index]`, cut to the site's rank and spread over the token axes:
    call_module router → select(1, index) → [slice] → [unsqueeze …] → mul(A x, ·)
"""

from __future__ import annotations

import torch
from torch import fx

from ...errors import PassError
from .adapters import AdapterSite, find_sites

aten = torch.ops.aten
_PATH_OPS = (aten.unsqueeze.default, aten.slice.Tensor)


def gate_source(site: AdapterSite) -> tuple[fx.Node, int]:
    """(the node that computes all gates (B, S, r), this site's index among them).

    Raises:
        PassError: the site has no gate of this form.
    """
    node = site.gate.args[1] if site.gate is not None else None
    while isinstance(node, fx.Node) and node.target in _PATH_OPS:
        node = node.args[0]
    if not isinstance(node, fx.Node) or node.target is not aten.select.int or not isinstance(node.args[2], int):
        raise PassError(f"The gate of {site.name} is not one row of a router's output.")
    source = node.args[0]
    if not isinstance(source, fx.Node):
        raise PassError(f"The gate of {site.name} is read from no node.")
    return source, node.args[2]


def gated_sites(graph_module: fx.GraphModule) -> dict[str, tuple[AdapterSite, ...]]:
    """Name of the gate's node target → the sites it gates, by index; gates in graph order, as they run."""
    found: dict[fx.Node, dict[int, AdapterSite]] = {}
    for site in find_sites(graph_module)[0]:
        if site.gate is not None:
            source, index = gate_source(site)
            found.setdefault(source, {})[index] = site
    # Gates that read one state stand in another order than the sites they gate.
    sources = [node for node in graph_module.graph.nodes if node in found]
    return {str(node.target): tuple(found[node][index] for index in sorted(found[node])) for node in sources}


def gated_site_names(graph_module: fx.GraphModule) -> dict[str, tuple[str, ...]]:
    """Router name → names of the sites it gates, in the order of its outputs."""
    return {router: tuple(site.name for site in sites) for router, sites in gated_sites(graph_module).items()}
