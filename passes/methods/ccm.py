"""CCM-LoRA: dynamic rank routing (Rafiuddin and Abdullah), as passes over a captured graph.

    prepare    capture → [AttachLora] → InsertRankRouter             a model that trains
    optimize   FreezeRegularization → HardenRouters → compact        a model that serves (see deploy.py)

Deviations from the paper, each with its reason:
    * the router pools the state entering the first adapted layer, not the last layer's: that one would cost a whole
      forward before the forward;
    * k(x) is the least k whose probabilities sum to c; one c per model, which follows the c at which each batch would
      have met the budget (the paper's "varying k" names no rule);
    * λ is a dual variable, or the term λ(E k − budget) would reward k below the budget without limit;
    * the count's gradient is that of exp(H(p)): Σp = 1 has none;
    * one trunk, a head per site.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from ...errors import UntrainedGateError
from ...models.configs.ccm import CCM
from ...models.gates import GateRecord, RankRouter
from ...models.level_solver import LevelSolver
from ...models.objectives import gate_loss, mean_count, rank_entropy, temperature_at
from ...models.rank_statistics import RankSummary, collapse, rank_summary
from ...models.task_loss import TaskLoss
from ..find.gates import gated_sites
from ..program import GraphProgram
from ..report import Report
from .ccm_diagnostics import RoutingDiagnostics, by_layer, routing_diagnostics
from .ccm_files import save_gated


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


class GatedModel(GraphProgram):
    """A trainable model whose adapters are gated: call it like the model it came from.

    In training mode the `loss` it returns is the task's plus the gates'; both parts stand beside it as `task_loss`
    and `gate_loss`. In eval mode `loss` is the task's alone.

    Attributes:
        method: the config; budget: E[k] in ranks.
    """

    def __init__(
        self,
        graph_module: fx.GraphModule,
        *,
        method: CCM,
        budget: float,
        loss: TaskLoss,
        model_config: Any,
        report: Report,
    ) -> None:
        super().__init__(graph_module, loss=loss, model_config=model_config, report=report)
        self.method = method
        self.budget = budget

    def routers(self) -> tuple[RankRouter, ...]:
        """The rank routers, in graph order."""
        return routers_of(self.graph_module)

    def gate_loss(self) -> Tensor:
        """The gates' terms of the objective on the last batch, for loops that compute the task's loss themselves."""
        self.records()
        return gate_loss(self.routers())

    def schedule(self, total_steps: int) -> GateSchedule:
        """What drives temperature, coverage and penalty over `total_steps`; call its step() after the optimiser's."""
        return GateSchedule(self, total_steps)

    def records(self) -> tuple[GateRecord, ...]:
        """What the routers decided on the last batch.

        Raises:
            UntrainedGateError: the model was not called yet.
        """
        records = tuple(router.record for router in self.routers())
        if not all(records):
            raise UntrainedGateError("The routers have decided nothing yet.", remedy="call the model on a batch first")
        return tuple(record for record in records if record is not None)

    def site_names(self) -> tuple[str, ...]:
        """The gated sites' names, in the order of the routers' outputs."""
        return tuple(name for names in gated_site_names(self.graph_module).values() for name in names)

    def layer_ranks(self) -> dict[str, float]:
        """Mean effective rank per layer on the last batch."""
        counts = torch.cat([record.count.detach() for record in self.records()], dim=1).mean(0)
        return by_layer(dict(zip(self.site_names(), counts.tolist(), strict=True)))

    def diagnostics(self, data: Sequence[Mapping[str, Tensor]]) -> RoutingDiagnostics:
        """What the routers decide on `data`, in eval mode: ranks, entropy, collapse, layers, usage, share of time."""
        return routing_diagnostics(self, data)

    def save_pretrained(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write adapter (PEFT's format) and gates to `folder`; `gatefx.from_pretrained` reads them back exactly.

        Raises:
            ArtifactError: the folder exists and overwrite is False.
        """
        return save_gated(self, folder, overwrite=overwrite)

    def _losses(self, outputs: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> dict[str, Tensor]:
        task = self.loss(outputs, labels)
        if not self.training:
            return {"loss": task}
        gates = self.gate_loss()
        return {"loss": task + gates, "task_loss": task.detach(), "gate_loss": gates.detach()}


class GateSchedule:
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
        records = self.model.records()
        mean, coverage = mean_count(records), self._coverage_for(records)
        for router in self.model.routers():
            router.observe(mean, coverage)
        row = self._row(records)
        self._set_temperature()
        self.history.append(row)
        return row

    def collapse_rate(self) -> float:
        """The share of steps whose batch had near-constant masks."""
        return sum(row.collapse is not None for row in self.history) / max(len(self.history), 1)

    def _set_temperature(self) -> None:
        for router in self.model.routers():
            router.temperature.fill_(temperature_at(router.config, int(router.updates) / self.total_steps))

    def _coverage_for(self, records: Sequence[GateRecord]) -> float:
        """The c at which the last batch would have met the budget."""
        routers = self.model.routers()
        solver = LevelSolver(
            [record.probabilities for record in records],
            [router.site_ranks for router in routers],
            rule="coverage",
            k_min=routers[0].config.k_min,
            buckets=None,
        )
        return -math.expm1(solver.level_for(routers[0].budget))

    def _row(self, records: Sequence[GateRecord]) -> GateStep:
        router = self.model.routers()[0]
        counts = torch.cat([record.count for record in records], dim=1).numpy(force=True)
        gate = records[0].gate.float().numpy(force=True)
        return GateStep(
            step=int(router.updates),
            ranks=rank_summary(counts),
            entropy=float(rank_entropy(records[0].probabilities).mean()),
            collapse=collapse(gate, router.site_ranks.numpy(force=True)),
            temperature=float(router.temperature),
            coverage=float(router.coverage),
            penalty=float(router.penalty),
        )


def routers_of(graph_module: fx.GraphModule) -> tuple[RankRouter, ...]:
    """The rank routers that a graph calls, in order."""
    modules = (graph_module.get_submodule(str(n.target)) for n in graph_module.graph.find_nodes(op="call_module"))
    found = [module for module in modules if isinstance(module, RankRouter)]
    return tuple(found)


def gated_site_names(graph_module: fx.GraphModule) -> dict[str, tuple[str, ...]]:
    """Router name → names of the sites it gates, in the order of its outputs."""
    return {router: tuple(site.name for site in sites) for router, sites in gated_sites(graph_module).items()}
