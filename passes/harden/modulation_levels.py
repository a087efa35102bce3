"""Calibrate: held-out batches → the level at which hard modulations meet a budget, and a table for other budgets.

The budget is a share: of all real tokens at all sites, how many take the update.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from ...models.modulation import HardModulation, Modulation
from ..find.modulations import find_modulated
from ..graph.edit import get_tensor
from .gate_scores import Batches, Scorer, collect_scores, meet_budget
from .levels import level_for, level_table, share_above
from .modulation import LEVEL, HardenModulations


@dataclass(frozen=True)
class SiteShare:
    """What a gate did at one site on the calibration data.

    Attributes:
        share: of the real tokens, how many took the update; gate: mean g.
    """

    share: float
    gate: float


@dataclass(frozen=True)
class LevelCalibration:
    """A level and what it achieves on the calibration data.

    Attributes:
        level: ln(θ / (1 − θ)); share: of tokens×sites that take the update; sites: site by site.
        table: (share, level) pairs, shares rising and levels falling. Exact at the calibrated share; elsewhere what
            the states left by the calibrated level say.
    """

    level: float
    share: float
    sites: Mapping[str, SiteShare]
    table: tuple[tuple[float, float], ...]

    @property
    def threshold(self) -> float:
        """θ, what g is compared with."""
        return 1 / (1 + math.exp(-min(max(self.level, -700.0), 700.0)))


def calibrate_level(
    frozen: fx.GraphModule, data: Batches, *, budget: float | None, level: float, show: bool | None = None
) -> LevelCalibration:
    """The level that meets `budget` on `data`, or what `level` achieves where there is no budget.

    Args:
        frozen: the graph with its trained modulations, in eval mode, without dropout.
    """
    masks = token_masks(frozen)
    if budget is not None:
        level = level_for(collect_logits(frozen, data, masks, show=show), budget)
    hard = HardenModulations(level)(frozen).graph_module

    def logits_at(level: float) -> dict[str, Tensor]:
        get_tensor(hard, LEVEL).fill_(level)
        return collect_logits(hard, data, masks, show=show)

    level, logits = meet_budget(logits_at, level=level, budget=budget)
    shares = {
        name: SiteShare(share_above({name: values}, level), float(torch.sigmoid(values).mean()))
        for name, values in logits.items()
    }
    share = share_above(logits, level)
    return LevelCalibration(level, share, shares, level_table(logits, budget or share, level))


def token_masks(graph_module: fx.GraphModule) -> dict[str, str]:
    """Site → the input that says which of its tokens are real, where there is one."""
    found = {}
    for item in find_modulated(graph_module):
        mask = item.gate.args[1] if isinstance(item.module, Modulation) and len(item.gate.args) > 1 else None
        if isinstance(mask, fx.Node):
            found[item.site.name] = str(mask.target)
    return found


def collect_logits(
    graph_module: fx.GraphModule, data: Batches, masks: Mapping[str, str], *, show: bool | None = None
) -> dict[str, Tensor]:
    """Site → the gate's logits at every real token of the data, (N,), on the CPU.

    Args:
        masks: site → name of the input that says which tokens are real; see `token_masks`.
    """
    gates = {}
    for item in find_modulated(graph_module):
        gate = item.module.modulation if isinstance(item.module, HardModulation) else item.module
        if isinstance(gate, Modulation):
            gates[item.site.name] = (item.site.name, item.module, _logits_of(gate))
    return collect_scores(graph_module, list(gates.values()), data, masks, show=show)


def _logits_of(gate: Modulation) -> Scorer:
    return lambda inputs: gate.logits(inputs[0])
