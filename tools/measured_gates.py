"""What the gates of a deployed model decide on texts, site by site: ranks, shares of updates, gate means, tokens kept.

Read from the masked reference graph, which decides as the compacted one does, on all tokens. Figures are means over the
real tokens (ranks: over the examples) of all batches, as calibration counts them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..passes.deployed import DeployedModel
from ..passes.find.gates import gated_site_names
from ..passes.find.modulations import find_modulated
from ..passes.find.thresholds import find_thresholded
from ..passes.gate.update_threshold import masks_of
from ..passes.gated import GatedModel
from ..passes.graph.edit import get_tensor
from ..passes.graph.signature import signature_of
from ..passes.harden.levels import share_above
from ..passes.harden.modulation import LEVEL as MODULATION_LEVEL
from ..passes.harden.modulation_levels import collect_logits, token_masks
from ..passes.harden.threshold_levels import collect_excess
from ..passes.harden.token_calibration import hard_gates, look_at
from ..passes.harden.update_threshold import LEVEL as THRESHOLD_LEVEL

Batches = Sequence[Mapping[str, Tensor]]
Figures = dict[str, float]


@dataclass(frozen=True)
class MeasuredGates:
    """What was measured.

    Attributes:
        sites: site → some of mean_rank, update_share, gate_mean: those that its gates decide.
        cuts: layer and share of the original tokens that stay after it, cut by cut.
    """

    sites: Mapping[str, Mapping[str, float]]
    cuts: tuple[Mapping[str, float], ...]


def measure_gates(gated: GatedModel, deployed: DeployedModel, data: Batches) -> MeasuredGates:
    """Run the data through the deployed gates.

    Args:
        gated: the model that `deployed` was made of: its training gates know which tokens are real.
    """
    graph = deployed.reference_graph
    found: dict[str, Figures] = {}
    for name, rank in _mean_ranks(graph, data).items():
        found.setdefault(name, {})["mean_rank"] = rank
    for name, figures in (*_updates(gated, graph, data).items(), *_modulations(gated, graph, data).items()):
        found.setdefault(name, {}).update(figures)
    return MeasuredGates(found, tuple(_cuts(graph, data)))


def _mean_ranks(graph: fx.GraphModule, data: Batches) -> dict[str, float]:
    """Site → mean number of active rank directions."""
    signature, routed = signature_of(graph), gated_site_names(graph)
    if not routed:
        return {}
    with torch.no_grad(), _counting(graph, tuple(routed)) as counts:
        for batch in data:
            graph(*signature.arrange(batch))
    means = {router: torch.cat(rows).double().mean(0).tolist() for router, rows in counts.items()}
    return {name: mean for router, names in routed.items() for name, mean in zip(names, means[router], strict=True)}


@contextmanager
def _counting(graph: fx.GraphModule, gates: Sequence[str]) -> Iterator[dict[str, list[Tensor]]]:
    """Gate on ranks → k(x) of every call, (B, S)."""
    counts: dict[str, list[Tensor]] = {name: [] for name in gates}
    handles = []
    for name in gates:

        def keep(_module: nn.Module, _inputs: Any, mask: Tensor, name: str = name) -> None:
            counts[name].append((mask > 0).sum(-1).cpu())

        handles.append(graph.get_submodule(name).register_forward_hook(keep))
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


def _updates(gated: GatedModel, graph: fx.GraphModule, data: Batches) -> dict[str, Figures]:
    """Share of tokens that thresholds let take the update."""
    if not find_thresholded(graph):
        return {}
    excess = collect_excess(graph, data, masks_of(gated.graph_module))
    level = float(get_tensor(graph, THRESHOLD_LEVEL))
    return {name: {"update_share": share_above({name: values}, level)} for name, values in excess.items()}


def _modulations(gated: GatedModel, graph: fx.GraphModule, data: Batches) -> dict[str, Figures]:
    """Mean gate, and the share of tokens that hard gates let take the update."""
    if not find_modulated(graph):
        return {}
    logits = collect_logits(graph, data, token_masks(gated.graph_module))
    figures = {name: {"gate_mean": float(torch.sigmoid(values).mean())} for name, values in logits.items()}
    if MODULATION_LEVEL in dict(graph.named_buffers()):
        level = float(get_tensor(graph, MODULATION_LEVEL))
        for name, values in logits.items():
            figures[name]["update_share"] = share_above({name: values}, level)
    return figures


def _cuts(graph: fx.GraphModule, data: Batches) -> Iterator[dict[str, float]]:
    """Share of the real tokens that stay after every cut."""
    for gate in hard_gates(graph):
        seen = look_at(graph, gate, data)
        kept, total = torch.cat(seen.counts).sum(), torch.cat(seen.totals).sum()
        yield {"layer": gate.layer, "share": float(kept) / max(float(total), 1.0)}
