"""Calibrate: held-out batches → the level at which thresholds meet a budget, and a table for other budgets.

The budget is a share: of all real tokens at all sites, how many take the update. What a token scores at a site is
r − τ, so one level above all of them keeps the differences between sites that training learned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, fx

from ...models.update_threshold import HardUpdateThreshold, UpdateThreshold
from ..find.thresholds import find_thresholded
from ..gate.update_threshold import masks_of
from ..graph.edit import get_tensor
from .gate_scores import Batches, Scorer, collect_scores, meet_budget
from .levels import level_for, level_table, share_above
from .update_threshold import LEVEL, HardenUpdateThresholds


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
    first = 0.0 if budget is None else level_for(collect_excess(frozen, data, masks, show=show), budget)
    hard = HardenUpdateThresholds(first)(frozen).graph_module

    def excess_at(level: float) -> dict[str, Tensor]:
        get_tensor(hard, LEVEL).fill_(level)
        return collect_excess(hard, data, masks, show=show)

    level, excess = meet_budget(excess_at, level=first, budget=budget)
    share = share_above(excess, level)
    shares = {name: share_above({name: values}, level) for name, values in excess.items()}
    return ThresholdCalibration(level, share, shares, level_table(excess, budget or share, level))


def collect_excess(
    graph_module: fx.GraphModule, data: Batches, masks: Mapping[str, str], *, show: bool | None = None
) -> dict[str, Tensor]:
    """Site → r − τ at every real token of the data, (N,), on the CPU.

    Args:
        masks: site → name of the input that says which tokens are real; see `masks_of`.
    """
    modules = {item.site.name: item.module for item in find_thresholded(graph_module)}
    gates = [(name, module, _excess_of(module)) for name, module in modules.items()]
    return collect_scores(graph_module, gates, data, masks, show=show)


def _excess_of(module: UpdateThreshold | HardUpdateThreshold) -> Scorer:
    gate = module.threshold if isinstance(module, HardUpdateThreshold) else module
    return lambda inputs: gate.excess(inputs[0], inputs[1])
