"""What a routing does on data: the diagnostics that CCM-LoRA asks to be always recorded (§3.4, §6, appendix C).

k(x) mean/P50/P90/P95, mask entropy, collapse rate, per-layer mean rank, direction usage, the router's share of time,
Jaccard stability between two views of the same examples, Jensen-Shannon divergence between groups.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from ...errors import InputError
from ...models.gates import RankRouter
from ...models.objectives import rank_entropy
from ...models.rank_statistics import RankSummary, collapse, direction_usage, jaccard, jensen_shannon, rank_summary
from ..find.gates import gated_site_names
from ..find.layer_names import layer_of
from .ccm_schedule import records_of, routers_of

if TYPE_CHECKING:
    from ..gated import GatedModel

Batches = Sequence[Mapping[str, Tensor]]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class RoutingDiagnostics:
    """The routing of a gated model on some batches, in eval mode.

    Attributes:
        ranks: distribution of k(x) over examples and sites; entropy: mean H(p) in nats.
        collapsed: share of batches with near-constant masks; collapse_kinds: how many of each kind.
        layer_ranks: mean k per layer; site_ranks: mean k per site.
        usage: how often each direction is active, (S, r), sites in the order of `site_ranks`.
        router_share: of the wall time of a forward, in [0, 1].
    """

    ranks: RankSummary
    entropy: float
    collapsed: float
    collapse_kinds: Mapping[str, int]
    layer_ranks: Mapping[str, float]
    site_ranks: Mapping[str, float]
    usage: Array
    router_share: float


@torch.no_grad()
def routing_diagnostics(model: GatedModel, data: Batches) -> RoutingDiagnostics:
    """Run `data` (labels are ignored) through the model in eval mode and describe what its routers decide.

    Raises:
        InputError: no batches.
    """
    gates, entropies, share = _observe(model, data)
    site_ranks = np.concatenate([router.site_ranks.numpy(force=True) for router in routers_of(model.graph_module)])
    kinds = Counter(kind for gate in gates if (kind := collapse(gate, site_ranks)) is not None)
    everything = np.concatenate(gates)
    counts = (everything > 0).sum(-1)
    per_site = dict(zip(site_names(model.graph_module), counts.mean(0).tolist(), strict=True))
    return RoutingDiagnostics(
        ranks=rank_summary(counts),
        entropy=float(np.mean(entropies)),
        collapsed=sum(kinds.values()) / len(gates),
        collapse_kinds=dict(kinds),
        layer_ranks=by_layer(per_site),
        site_ranks=per_site,
        usage=direction_usage((everything > 0).astype(np.float64)),
        router_share=share,
    )


def stability(model: GatedModel, data: Batches, perturbed: Batches) -> float:
    """Jaccard overlap of the active sets of the same examples in two views (a paraphrase, typos): 1 is unchanged.

    Raises:
        InputError: views of different sizes.
    """
    first, second = (np.concatenate(_observe(model, view)[0]) for view in (data, perturbed))
    if first.shape != second.shape:
        raise InputError(
            "The two views hold different numbers of examples.",
            given=f"{len(first)} and {len(second)} examples",
            expected="the same examples in the same order",
        )
    return jaccard(_open(first), _open(second))


def divergence(model: GatedModel, groups: Mapping[str, Batches]) -> dict[tuple[str, str], float]:
    """Jensen-Shannon divergence (nats) of direction usage between every two groups, e.g. languages or domains."""
    gates = {name: _open(np.concatenate(_observe(model, data)[0])) for name, data in groups.items()}
    names = list(gates)
    pairs = [(a, b) for index, a in enumerate(names) for b in names[index + 1 :]]
    return {(a, b): jensen_shannon(gates[a], gates[b]) for a, b in pairs}


def _open(gates: Array) -> Array:
    return (gates > 0).astype(np.float64)


@torch.no_grad()
def _observe(model: GatedModel, data: Batches) -> tuple[list[Array], list[float], float]:
    """Per batch the gates (B, S, r) and the mean entropy; and the routers' share of the time."""
    if not data:
        raise InputError("There is nothing to diagnose.", given="no batches", expected="a list of batches")
    gates, entropies = [], []
    training = model.training
    model.eval()
    try:
        with _RouterClock(routers_of(model.graph_module)) as clock:
            started = time.perf_counter()
            for batch in data:
                model.answer({name: batch[name] for name in model.signature.input_names if name in batch})
                records = records_of(model.graph_module)
                widest = max(record.gate.shape[-1] for record in records)
                parts = [nn.functional.pad(r.gate.float(), (0, widest - r.gate.shape[-1])) for r in records]
                gates.append(torch.cat(parts, dim=1).numpy(force=True).astype(np.float64))
                entropies.append(float(rank_entropy(records[0].probabilities).mean()))
            total = time.perf_counter() - started
    finally:
        model.train(training)
    return gates, entropies, clock.seconds / total


class _RouterClock:
    """Adds up the time spent inside routers."""

    def __init__(self, routers: Sequence[RankRouter]) -> None:
        self.seconds = 0.0
        self._routers = routers
        self._started = 0.0
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> _RouterClock:
        for router in self._routers:
            self._handles.append(router.register_forward_pre_hook(self._start))
            self._handles.append(router.register_forward_hook(self._stop))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _start(self, *_: object) -> None:
        self._started = time.perf_counter()

    def _stop(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._started


def site_names(graph_module: fx.GraphModule) -> tuple[str, ...]:
    """The gated sites' names, in the order of the routers' outputs."""
    return tuple(name for names in gated_site_names(graph_module).values() for name in names)


def layer_ranks(model: GatedModel) -> dict[str, float]:
    """Mean effective rank per layer on the last batch.

    Raises:
        UntrainedGateError: the model was not called yet.
    """
    graph = model.graph_module
    counts = torch.cat([record.count.detach() for record in records_of(graph)], dim=1).mean(0)
    return by_layer(dict(zip(site_names(graph), counts.tolist(), strict=True)))


def by_layer(per_site: Mapping[str, float]) -> dict[str, float]:
    """Mean rank of each layer's sites; a site outside any layer stands for itself."""
    groups: dict[str, list[float]] = {}
    for name, rank in per_site.items():
        groups.setdefault(layer_of(name) or name, []).append(rank)
    return {layer: sum(ranks) / len(ranks) for layer, ranks in groups.items()}
