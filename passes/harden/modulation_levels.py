"""Calibrate: held-out batches → the level at which hard modulations meet a budget, and a table for other budgets.

The budget is a share: of all real tokens at all sites, how many take the update. A level moves every later site's
states with the decisions of the earlier ones, so quantiles of the trained gates are a first guess only; the level is
solved again on the states that the hard gates themselves leave.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from ...models.modulation import HardModulation, Modulation
from ...progress import track
from ..find.modulations import find_modulated
from ..graph.edit import get_tensor
from ..graph.signature import signature_of
from .levels import NEAR, level_for, level_table, share_above
from .modulation import LEVEL, HardenModulations

_ROUNDS = 4

Batches = Sequence[Mapping[str, Tensor]]


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
    sources = token_masks(frozen)
    logits = collect_logits(frozen, data, sources, show=show)
    if budget is not None:
        level = level_for(logits, budget)
    hard = HardenModulations(level)(frozen).graph_module
    best = (math.inf, level, logits)
    for _ in range(_ROUNDS):
        get_tensor(hard, LEVEL).fill_(level)
        logits = collect_logits(hard, data, sources, show=show)
        error = 0.0 if budget is None else abs(share_above(logits, level) - budget)
        if error < best[0]:
            best = (error, level, logits)
        if budget is None or error <= NEAR:
            break
        level = level_for(logits, budget)
    _, level, logits = best
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


@torch.no_grad()
def collect_logits(
    graph_module: fx.GraphModule, data: Batches, masks: Mapping[str, str], *, show: bool | None = None
) -> dict[str, Tensor]:
    """Site → the gate's logits at every real token of the data, (N,), on the CPU.

    Args:
        masks: site → name of the input that says which tokens are real; see `token_masks`.
    """
    signature = signature_of(graph_module)
    kept: dict[str, list[Tensor]] = {}
    with _recording(graph_module) as seen:
        for batch in track(data, "calibrating", show=show):
            seen.clear()
            inputs = signature.arrange(batch)
            graph_module(*inputs)
            named = dict(zip(signature.input_names, inputs, strict=True))
            for name, logits in seen.items():
                rows = logits if name not in masks else logits[named[masks[name]].bool()]
                kept.setdefault(name, []).append(rows.flatten().cpu())
    return {name: torch.cat(rows) for name, rows in kept.items()}


@contextmanager
def _recording(graph_module: fx.GraphModule) -> Iterator[dict[str, Tensor]]:
    """Site → its gate's logits in the last call."""
    seen: dict[str, Tensor] = {}
    handles = []
    for item in find_modulated(graph_module):
        gate = item.module.modulation if isinstance(item.module, HardModulation) else item.module

        def keep(
            _module: nn.Module,
            inputs: tuple[Tensor, ...],
            _: Tensor,
            name: str = item.site.name,
            gate: nn.Module = gate,
        ) -> None:
            if isinstance(gate, Modulation):
                seen[name] = gate.logits(inputs[0])

        handles.append(item.module.register_forward_hook(keep))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
