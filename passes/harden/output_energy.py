"""How much every adapter adds to its layer, measured on data: what stands in for weights that were never learned.

The energy of an adapter is the mean of ‖s·B A x‖² over the tokens of the data, padding left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ...progress import track
from ..find.adapters import AdapterSite, find_sites
from ..gate.rank_router import real_token_mask
from ..graph.signature import signature_of


@torch.no_grad()
def output_energies(
    graph_module: fx.GraphModule, data: Sequence[Mapping[str, Tensor]], *, show: bool | None = None
) -> dict[str, float]:
    """Adapter → mean ‖s·B A x‖² per real token, on batches that fit the graph's signature."""
    meter, signature = _Meter(graph_module), signature_of(graph_module)
    for batch in track(data, "measuring adapters", show=show, total=len(data)):
        meter.run(*signature.arrange(batch))
    return {name: total / max(meter.counts[name], 1) for name, total in meter.totals.items()}


class _Meter(fx.Interpreter):
    """Runs a graph and sums squares of the sites' scaled updates."""

    def __init__(self, graph_module: fx.GraphModule) -> None:
        super().__init__(graph_module, garbage_collect_values=False)
        sites = find_sites(graph_module)[0]
        self.sites: dict[fx.Node, AdapterSite] = {site.scaled: site for site in sites}
        self.masks = {site.scaled: real_token_mask(graph_module, site.x) for site in sites}
        self.totals = dict.fromkeys((site.name for site in sites), 0.0)
        self.counts = dict.fromkeys(self.totals, 0.0)

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        site = self.sites.get(n)
        if site is not None:
            squares = value.float().square().sum(-1)
            mask = self.masks[n]
            real = torch.ones_like(squares) if mask is None else self.env[mask].to(squares.dtype)
            self.totals[site.name] += float((squares * real).sum())
            self.counts[site.name] += float(real.sum())
        return value
