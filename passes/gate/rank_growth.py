"""Grow: an adapter site of rank r → one of rank m·r with fresh factors (WeightLoRA, §2; m = 2 in WeightLoRA+, §2.2).

    x ─▶ linear(A (r, d)) ─▶ linear(B (d', r))   →   x ─▶ linear(A' (m·r, d)) ─▶ linear(B' (d', m·r))

Not a rewrite of one function: A' is random and B' zero, as in a LoRA that starts. The scale stays: α grows with the
rank, as gatefx's default α = 2r does, so that what a step of training moves the update by does not shrink.

The graph must own its parameters: the new ones take the names of the old ones. Each run starts afresh again.

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
    """Give sites new factors of `times` their rank.

    Attributes:
        sites: their names; times: 1 starts the same adapters again, 2 doubles their rank.
    """

    sites: tuple[str, ...]
    times: int

    exactness: ClassVar[Exact | Approximate] = Approximate("the adapters start afresh")

    def requires(self, graph_module: fx.GraphModule) -> None:
        """No gate on rank directions where ranks change."""
        gated = [site.name for site in self._chosen(graph_module) if site.gate is not None]
        if gated and self.times != 1:
            raise PassError("Gates on rank directions keep the ranks they were made for.", given=", ".join(gated))

    def apply(self, graph_module: fx.GraphModule) -> Outcome:
        """Replace A and B of every named site."""
        renewed: set[str] = set()
        for site in self._chosen(graph_module):
            rank = self.times * site.rank
            for node, shape in ((site.lora_a, (rank, site.d_in)), (site.lora_b, (site.d_out, rank))):
                name = str(node.target)
                if name not in renewed:  # layers that share their weights share A and B
                    own_tensor(graph_module, name, _fresh(get_tensor(graph_module, name), shape, node is site.lora_a))
                    renewed.add(name)
                node.meta["val"] = tensor_value(node).new_empty(shape)
            site.down.meta["val"] = tensor_value(site.down).new_empty((*shape_of(site.down)[:-1], rank))
        return Outcome(tuple(dict.fromkeys(site.name for site in self._chosen(graph_module))))

    def _chosen(self, graph_module: fx.GraphModule) -> list[AdapterSite]:
        return [site for site in find_sites(graph_module)[0] if site.name in self.sites]


def _fresh(old: torch.Tensor, shape: tuple[int, int], random: bool) -> nn.Parameter:  # A or B
    """A new factor as PEFT starts it: A random (Kaiming), B zero."""
    new = nn.Parameter(torch.zeros(shape, dtype=old.dtype, device=old.device), requires_grad=old.requires_grad)
    if random:
        nn.init.kaiming_uniform_(new, a=math.sqrt(5))
    return new
