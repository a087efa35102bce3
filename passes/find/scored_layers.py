"""Scored layers: the adapter sites whose low-rank paths see the tokens that a cut would drop, layer by layer.

    [cut 0] ─▶ sites of layer 1 ─▶ [cut 1] ─▶ sites of layer 2 ─▶ … ─▶ last layer (and a decoder's reading of it)

A site belongs to the layer between the two cuts that it stands between. Counted are sites whose u = A x holds one
row per token, (B, T, r); those on pooled states, or on a decoder's own tokens, tell nothing about these tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from .adapters import AdapterSite, Miss, find_sites
from .layers import Cut, find_cuts
from .token_flow import follow_tokens

_TOKENS = frozenset({1})
_RANK = 3


@dataclass(frozen=True)
class ScoredLayer:
    """The sites between one cut and the next.

    Attributes:
        layer: its number from 1; sites: in graph order.
    """

    layer: int
    sites: tuple[AdapterSite, ...]


def find_scored_layers(graph_module: fx.GraphModule) -> tuple[ScoredLayer, ...] | Miss:
    """Every layer that has such sites, in order; why there are none."""
    cuts = find_cuts(graph_module)
    if isinstance(cuts, Miss):
        return cuts
    axes = follow_tokens(graph_module, cuts[0].state).axes
    place = {node: index for index, node in enumerate(graph_module.graph.nodes)}
    layers: dict[int, list[AdapterSite]] = {}
    for site in find_sites(graph_module)[0]:
        if axes.get(site.down) == _TOKENS and len(site.down.meta["val"].shape) == _RANK:
            layers.setdefault(_layer(cuts, place, site), []).append(site)
    if not layers:
        return Miss(cuts[0].state.name, "no adapter after it reads the tokens one by one")
    return tuple(ScoredLayer(layer, tuple(layers[layer])) for layer in sorted(layers))


def _layer(cuts: tuple[Cut, ...], place: dict[fx.Node, int], site: AdapterSite) -> int:
    return 1 + max(cut.layer for cut in cuts if place[cut.state] < place[site.down])
