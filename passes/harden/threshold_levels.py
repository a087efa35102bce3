"""Calibrate: held-out batches → the level at which thresholds meet a budget, and a table for other budgets.

The budget is a share: of all real tokens at all sites, how many take the update. What a token scores at a site is
r − τ, so one level above all of them keeps the differences between sites that training learned. A level moves every
later site's states with the decisions of the earlier ones, so it is solved again on the states that it leaves.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from ...models.update_threshold import HardUpdateThreshold
from ...progress import track
from ..find.thresholds import find_thresholded
from ..gate.update_threshold import masks_of
from ..graph.edit import get_tensor
from ..graph.signature import signature_of
from .levels import NEAR, level_for, level_table, share_above
from .update_threshold import LEVEL, HardenUpdateThresholds

_ROUNDS = 4

Batches = Sequence[Mapping[str, Tensor]]


@dataclass(frozen=True)
class ThresholdCalibration:
    """A level and what it achieves on the calibration data.

    Attributes:
        level: what is added to every τ; share: of tokens×sites that take the update; shares: site by site.
        table: (share, level) pairs, shares rising and levels falling. Exact at the calibrated share; elsewhere what
            the states left by the calibrated level say.
    """

    level: float
    share: float
    shares: Mapping[str, float]
    table: tuple[tuple[float, float], ...]


def calibrate_thresholds(
    frozen: fx.GraphModule, data: Batches, *, budget: float | None, show: bool | None = None
) -> ThresholdCalibration:
    """The level that meets `budget` on `data`, or what the trained thresholds achieve where there is no budget.

    Args:
        frozen: the graph with its thresholds as trained, in eval mode, without dropout.
    """
    masks = masks_of(frozen)
    level = 0.0 if budget is None else level_for(collect_excess(frozen, data, masks, show=show), budget)
    hard = HardenUpdateThresholds(level)(frozen).graph_module
    best = (math.inf, level, dict[str, Tensor]())
    for _ in range(_ROUNDS):
        get_tensor(hard, LEVEL).fill_(level)
        excess = collect_excess(hard, data, masks, show=show)
        error = 0.0 if budget is None else abs(share_above(excess, level) - budget)
        if error < best[0]:
            best = (error, level, excess)
        if budget is None or error <= NEAR:
            break
        level = level_for(excess, budget)
    _, level, excess = best
    share = share_above(excess, level)
    shares = {name: share_above({name: values}, level) for name, values in excess.items()}
    return ThresholdCalibration(level, share, shares, level_table(excess, budget or share, level))


@torch.no_grad()
def collect_excess(
    graph_module: fx.GraphModule, data: Batches, masks: Mapping[str, str], *, show: bool | None = None
) -> dict[str, Tensor]:
    """Site → r − τ at every real token of the data, (N,), on the CPU.

    Args:
        masks: site → name of the input that says which tokens are real; see `masks_of`.
    """
    signature = signature_of(graph_module)
    kept: dict[str, list[Tensor]] = {}
    with _recording(graph_module) as seen:
        for batch in track(data, "calibrating", show=show):
            inputs = signature.arrange(batch)
            graph_module(*inputs)
            named = dict(zip(signature.input_names, inputs, strict=True))
            for name, excess in seen:
                rows = excess if name not in masks else excess[named[masks[name]].bool()]
                kept.setdefault(name, []).append(rows.flatten().cpu())
            seen.clear()
    return {name: torch.cat(rows) for name, rows in kept.items()}


@contextmanager
def _recording(graph_module: fx.GraphModule) -> Iterator[list[tuple[str, Tensor]]]:
    """(site, r − τ) of every call of a threshold since the list was last cleared."""
    seen: list[tuple[str, Tensor]] = []
    handles = []
    modules = {item.site.name: item.module for item in find_thresholded(graph_module)}
    for name, module in modules.items():
        gate = module.threshold if isinstance(module, HardUpdateThreshold) else module

        def keep(
            _: nn.Module, inputs: tuple[Tensor, ...], _answer: Tensor, name: str = name, gate: nn.Module = gate
        ) -> None:
            seen.append((name, gate.excess(*inputs[:2])))  # type: ignore[operator]  # a threshold's own

        handles.append(module.register_forward_hook(keep))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
