"""What moves the rank routers over a training run: temperature, coverage and penalty (CCM-LoRA §2.4, appendix B.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import fx

from ...models.gate_records import last_records
from ...models.gates import GateRecord, RankRouter
from ...models.level_solver import LevelSolver
from ...models.objectives import mean_count, rank_entropy, temperature_at
from ...models.rank_statistics import RankSummary, collapse, rank_summary
from .method import MethodSchedule

if TYPE_CHECKING:
    from ..gated import GatedModel


@dataclass(frozen=True)
class GateStep:
    """One training step of the routers, as diagnostics keep it."""

    step: int
    ranks: RankSummary
    entropy: float
    collapse: str | None
    temperature: float
    coverage: float
    penalty: float


class GateSchedule(MethodSchedule):
    """Temperature, coverage and penalty over a training run. Its state lives in the routers' buffers, so a run resumed
    from a state_dict goes on where it stopped.

    Args:
        model: the gated model.
        total_steps: optimiser steps of the whole run.
    """

    def __init__(self, model: GatedModel, total_steps: int) -> None:
        self.model = model
        self.total_steps = max(int(total_steps), 1)
        self.history: list[GateStep] = []
        self._set_temperature()

    @torch.no_grad()
    def step(self) -> GateStep:
        """Observe the last batch, move c and λ towards the budget, cool τ; call once per optimiser step."""
        records = records_of(self.model.graph_module)
        mean, level = mean_count(records), self._level_for(records)
        for router in self._routers():
            router.observe(mean, level)
        row = self._row(records)
        self._set_temperature()
        self.history.append(row)
        return row

    def figures(self) -> Mapping[str, float]:
        """Effective rank, entropy, temperature, coverage, penalty and collapse rate."""
        if not self.history:
            return {}
        row = self.history[-1]
        return {
            "effective_rank": row.ranks.mean,
            "effective_rank_p90": row.ranks.p90,
            "gate_entropy": row.entropy,
            "gate_temperature": row.temperature,
            "gate_coverage": row.coverage,
            "gate_penalty": row.penalty,
            "gate_collapse_rate": self.collapse_rate(),
        }

    def collapse_rate(self) -> float:
        """The share of steps whose batch had near-constant masks."""
        return sum(row.collapse is not None for row in self.history) / max(len(self.history), 1)

    def _routers(self) -> tuple[RankRouter, ...]:
        return routers_of(self.model.graph_module)

    def _set_temperature(self) -> None:
        for router in self._routers():
            router.temperature.fill_(temperature_at(router.config, int(router.updates) / self.total_steps))

    def _level_for(self, records: Sequence[GateRecord]) -> float:
        """log(1 − c) of the c at which the last batch would have met the budget."""
        routers = self._routers()
        solver = LevelSolver(
            [record.probabilities for record in records],
            [router.site_ranks for router in routers],
            rule="coverage",
            k_min=routers[0].config.k_min,
            buckets=None,
        )
        return solver.level_for(routers[0].budget)

    def _row(self, records: Sequence[GateRecord]) -> GateStep:
        router = self._routers()[0]
        counts = torch.cat([record.count for record in records], dim=1).numpy(force=True)
        gate = records[0].gate.float().numpy(force=True)
        return GateStep(
            step=int(router.updates),
            ranks=rank_summary(counts),
            entropy=float(rank_entropy(records[0].probabilities).mean()),
            collapse=collapse(gate, router.site_ranks.numpy(force=True)),
            temperature=float(router.temperature),
            coverage=router.coverage,
            penalty=float(router.penalty),
        )


def routers_of(graph_module: fx.GraphModule) -> tuple[RankRouter, ...]:
    """The rank routers that a graph calls, in order."""
    modules = (graph_module.get_submodule(str(n.target)) for n in graph_module.graph.find_nodes(op="call_module"))
    found = [module for module in modules if isinstance(module, RankRouter)]
    return tuple(found)


def records_of(graph_module: fx.GraphModule) -> tuple[GateRecord, ...]:
    """What the routers decided on the last batch.

    Raises:
        UntrainedGateError: the model was not called yet.
    """
    return last_records(routers_of(graph_module))
