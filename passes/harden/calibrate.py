"""Calibrate: held-out batches → the level at which the deployed routers meet a budget, and a table for other budgets.

k is rounded up to buckets at deployment, so the c that met the budget in training would exceed it; the level is
solved again for the rounded counts (methods: "c is calibrated at deployment on held-out batches").
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx

from ...errors import BudgetError
from ...models.gate_functions import select_ranks
from ...models.level_solver import LevelSolver
from ...models.rank_statistics import RankSummary, rank_summary
from ...progress import track
from ..find.gates import gated_site_names
from ..graph.signature import signature_of
from ..methods.ccm_schedule import routers_of

_TABLE_STEP = 0.5  # ranks


@dataclass(frozen=True)
class RouterScores:
    """What the routers answered on the calibration data, per router: scores (N, S, r), on the CPU."""

    scores: tuple[Tensor, ...]
    site_ranks: tuple[Tensor, ...]
    site_names: tuple[str, ...]


@dataclass(frozen=True)
class Calibration:
    """A level, what it achieves on the calibration data, and the levels of other budgets.

    Attributes:
        rule: "coverage", "fixed" or "threshold"; level: its number (log(1 − c), ranks, or a score).
        ranks: the distribution of deployed k; site_ranks: mean deployed k per site.
        largest: mean over batches of the batch's largest deployed k per site: what a gathered batch computes.
        table: (budget, level) pairs in order of budget.
        static: sites whose active set never varied on the data, with that set.
    """

    rule: str
    level: float
    buckets: tuple[int, ...]
    ranks: RankSummary
    site_ranks: Mapping[str, float]
    largest: Mapping[str, float]
    table: tuple[tuple[float, float], ...]
    static: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def coverage(self) -> float:
        """c, where the rule is "coverage"."""
        return -math.expm1(self.level)

    def level_for(self, budget: float) -> float:
        """The level that meets another budget, interpolated.

        Raises:
            BudgetError: a budget outside the table.
        """
        budgets, levels = zip(*self.table, strict=True)
        if not budgets[0] <= budget <= budgets[-1]:
            raise BudgetError(
                "The budget is outside what was calibrated.",
                given=f"budget={budget:g}",
                expected=f"{budgets[0]:g} to {budgets[-1]:g} ranks",
                remedy="optimize again with data= for a larger range",
            )
        return float(np.interp(budget, budgets, levels))


@torch.no_grad()
def collect_scores(
    graph_module: fx.GraphModule, data: Sequence[Mapping[str, Tensor]], *, show: bool | None = None
) -> RouterScores:
    """Run the graph on the data and keep what its routers score."""
    routers = routers_of(graph_module)
    signature = signature_of(graph_module)
    kept: list[list[Tensor]] = [[] for _ in routers]
    for batch in track(data, "calibrating", show=show):
        graph_module(*signature.arrange(batch))
        for rows, router in zip(kept, routers, strict=True):
            if router.record is not None:
                rows.append(router.record.probabilities.detach().cpu())
    names = gated_site_names(graph_module)
    return RouterScores(
        tuple(torch.cat(rows) for rows in kept),
        tuple(router.site_ranks.cpu() for router in routers),
        tuple(name for sites in names.values() for name in sites),
    )


def calibrate(
    scores: RouterScores, budget: float, *, rule: str, k_min: int, buckets: tuple[int, ...], batch: int = 1
) -> Calibration:
    """The level that meets `budget` after rounding up to buckets, with its table, for serving `batch` at once."""
    largest = max(int(ranks.max()) for ranks in scores.site_ranks)
    stops = torch.tensor((*(b for b in buckets if b < largest), largest))

    solver = LevelSolver(scores.scores, scores.site_ranks, rule=rule, k_min=k_min, buckets=stops)
    level = solver.level_for(budget)
    counts = solver.counts(level)
    per_site = counts.double().mean(0).tolist()
    served = torch.stack([part.double().amax(0) for part in torch.split(counts, batch)])
    reachable = float(torch.cat(scores.site_ranks).double().mean())
    budgets = np.union1d(np.arange(float(k_min), reachable, _TABLE_STEP), [reachable])
    table = [(float(b), solver.level_for(float(b))) for b in budgets]
    return Calibration(
        rule=rule,
        level=level,
        buckets=tuple(stops.tolist()),
        ranks=rank_summary(counts.numpy()),
        site_ranks=dict(zip(scores.site_names, per_site, strict=True)),
        largest=dict(zip(scores.site_names, served.mean(0).tolist(), strict=True)),
        table=tuple(_monotone(table)),
        static=tuple(_static(scores, level, rule, k_min, stops)),
    )


def _monotone(table: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Levels that never move against their budgets, whatever the bisection's last bit was."""
    rising = table[-1][1] >= table[0][1]
    levels = np.array([level for _, level in table])
    ordered = np.maximum.accumulate(levels) if rising else np.minimum.accumulate(levels)
    return [(budget, float(level)) for (budget, _), level in zip(table, ordered, strict=True)]


def _static(
    scores: RouterScores, level: float, rule: str, k_min: int, buckets: Tensor
) -> list[tuple[str, tuple[int, ...]]]:
    found = []
    names = iter(scores.site_names)
    for part, ranks in zip(scores.scores, scores.site_ranks, strict=True):
        _, masks = select_ranks(part, torch.tensor(level), ranks, rule=rule, k_min=k_min, buckets=buckets)
        constant = (masks == masks[:1]).all(-1).all(0)
        for index in range(masks.shape[1]):
            name = next(names)
            if bool(constant[index]):
                found.append((name, tuple(torch.nonzero(masks[0, index]).flatten().tolist())))
    return found
