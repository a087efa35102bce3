"""Grow: every adapter site of rank r → one of rank m·r with fresh factors (WeightLoRA+, §2.2).

    x ─▶ linear(A (r, d)) ─▶ linear(B (d', r))   →   x ─▶ linear(A' (m·r, d)) ─▶ linear(B' (d', m·r))

Not a rewrite of one function: A' is random and B' zero, as in a LoRA that starts. The scale stays.

Refuses gates on rank directions: their width is the old rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx, nn

from ...errors import PassError
from ..contract import Approximate, Exact, Pass
from ..find.adapters import AdapterSite, find_sites
from ..graph.edit import get_tensor, own_tensor, shape_of, tensor_value
from ..report import Outcome


@dataclass(frozen=True)
class StartSitesAfresh(Pass):
    """Give every site new factors of `times` its rank.

    Attributes:
        times: 1 starts the same adapters again, 2 doubles their rank.
    """

    times: int

    exactness: ClassVar[Exact | Approximate] = Approximate("the adapters start afresh")

    def requires(self, graph_module: fx.GraphModule) -> None:
        """No gate on rank directions where ranks change."""
        gated = [site.name for site in find_sites(graph_module)[0] if site.gate is not None]
        if gated and self.times != 1:
            raise PassError("Gates on rank directions keep the ranks they were made for.", given=", ".join(gated))

    def apply(self, graph_module: fx.GraphModule) -> Outcome:
        """Replace A and B of every site."""
        sites = find_sites(graph_module)[0]
        for site in sites:
            self._start(graph_module, site)
        return Outcome(tuple(site.name for site in sites))

    def _start(self, graph_module: fx.GraphModule, site: AdapterSite) -> None:
        rank = self.times * site.rank
        for node, shape in ((site.lora_a, (rank, site.d_in)), (site.lora_b, (site.d_out, rank))):
            old = get_tensor(graph_module, str(node.target))
            fresh = nn.Parameter(torch.zeros(shape, dtype=old.dtype, device=old.device))
            if node is site.lora_a:
                nn.init.kaiming_uniform_(fresh, a=math.sqrt(5))
            own_tensor(graph_module, str(node.target), fresh)
            node.meta["val"] = tensor_value(node).new_empty(shape)
        site.down.meta["val"] = tensor_value(site.down).new_empty((*shape_of(site.down)[:-1], rank))
