"""WeightLoRA: keep only the adapters that matter (Veprikov et al.), as passes over a captured graph.

    prepare    capture → [AttachLora] → InsertAdapterWeights                             a model that trains
    training   StoIHT on ω for T steps → the choice → StartSitesAfresh on the kept ones  plain LoRA on K sites
    optimize   FreezeRegularization → HardenAdapterWeights                               the masked graph
               → DropSites → FoldAdapters where asked for                                a model that serves

y = W0 x + ω_i·s·B A x with ‖ω‖₀ ≤ K. What the paper leaves open: see `models/iterative_thresholding.py` (step size,
ties) and `gate/rank_growth.py` (the scale of doubled ranks); ω starts at 1.

During training a dropped adapter stays in the graph, multiplied by zero and without gradients: other methods' gates may
stand on it, and its name in a saved state stays. The optimiser forgets it; the deployed graph no longer has it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import fx

from ...config import Budget, resolve_budget
from ...errors import BudgetError, PassError
from ...models.configs.weightlora import WeightLoRA
from ...models.iterative_thresholding import largest
from ..chain import Chain
from ..compact.sites import DropSites
from ..contract import Pass
from ..decision import Decision
from ..find.adapter_weights import adapter_names, weights_by_name
from ..find.required import required_sites
from ..gate.adapter_weight import InsertAdapterWeights
from ..harden.adapter_weight import HardenAdapterWeights, OpenAdapterWeights
from ..harden.distill import mean_divergence, student_and_teacher
from ..harden.output_energy import output_energies
from ..simplify.fold_adapters import FoldAdapters
from ..sites import DeployedSite
from .method import Batches, DeployOptions, FitQuality, Method
from .weightlora_training import SelectionSchedule

if TYPE_CHECKING:
    from ..gated import GatedModel


@dataclass(frozen=True)
class AdapterDecision(Decision):
    """Which adapters stay.

    Attributes:
        kept, dropped: names of adapters.
    """

    kept: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()


class AdapterSelection(Method[WeightLoRA]):
    """The choice of adapters on one model; its budget is K, how many stay."""

    name = "weightlora"
    unit = "sites"
    budget: float

    @classmethod
    def resolve_budget(cls, config: WeightLoRA, budget: Budget | None, graph_module: fx.GraphModule) -> float:
        """K: half of the adapters unless said otherwise.

        Raises:
            SiteError: no adapters; BudgetError: out of range, or another than half for weightlora+.
        """
        count = _count(graph_module)
        half = max(1, count // 2)
        kept = half if budget is None else math.floor(resolve_budget(budget, limit=count, unit="sites"))
        if config.plus and kept not in (half, count):
            raise BudgetError(
                "weightlora+ keeps half of the adapters, at twice the rank.",
                given=f"budget={budget!r} of {count} adapters",
                expected=f"{half}, or no budget",
                remedy='leave the budget out, or use method="weightlora"',
            )
        return float(kept)

    def limit(self, graph_module: fx.GraphModule) -> float:
        """All adapters."""
        return float(_count(graph_module))

    def gates(self) -> tuple[Pass, ...]:
        """One weight per adapter."""
        return (InsertAdapterWeights(),)

    def open_gates(self, graph_module: fx.GraphModule) -> tuple[Pass, ...]:  # noqa: ARG002
        """Every adapter whole."""
        return (OpenAdapterWeights(),)

    def schedule(
        self, model: GatedModel, total_steps: int, optimizer: torch.optim.Optimizer | None
    ) -> SelectionSchedule:
        """Warm-up and choice.

        Raises:
            InputError: no optimizer; MethodError: weightlora+ beside gates on ranks.
        """
        warmup = self.config.warmup_steps(total_steps)
        return SelectionSchedule(model, self.config, int(self.budget), warmup, optimizer)

    def is_trained(self, graph_module: fx.GraphModule) -> bool:
        """Whether ω was moved at all; a run that ended within its warm-up is judged by the ω it reached."""
        return any(int(weight.updates) > 0 or bool(weight.frozen) for weight in weights_by_name(graph_module).values())

    def fit(self, model: GatedModel, data: Batches, *, steps: int, show: bool | None) -> FitQuality:  # noqa: ARG002
        """Keep the K adapters that add most to their layers on the data; the adapters stay as they are."""
        _, plain = student_and_teacher(model, self.name)
        energies = output_energies(plain, data, show=show)
        weights = weights_by_name(model.graph_module)
        names = tuple(weights)
        kept = {names[index] for index in largest([energies[name] for name in names], int(self.budget))}
        for name, weight in weights.items():
            weight.freeze(keep=name in kept)
        student, teacher = student_and_teacher(model, self.name)
        return FitQuality(self.name, 0, mean_divergence(student, teacher, data), float(len(kept)), "sites")

    def trained_facts(self, graph_module: fx.GraphModule) -> Mapping[str, object]:
        """ω of every adapter, and those that deployment drops."""
        omegas = {name: float(weight.omega) for name, weight in weights_by_name(graph_module).items()}
        kept = {tuple(omegas)[index] for index in largest([abs(omega) for omega in omegas.values()], int(self.budget))}
        return {"omegas": omegas, "dropped": [name for name in omegas if name not in kept]}

    def harden(self, chain: Chain, data: Batches | None, options: DeployOptions) -> tuple[Chain, AdapterDecision]:  # noqa: ARG002
        """ω → adapters that stay, their ω in the scale, and adapters multiplied by zero.

        Raises:
            BudgetError: another number of adapters than training chose.
        """
        names, limit = tuple(weights_by_name(chain.graph)), self.limit(chain.graph)
        if self.budget == limit:
            note = "the budget keeps every adapter"
            return chain.then(OpenAdapterWeights()), AdapterDecision(limit, limit, notes=(note,), kept=names)
        kept = _kept(chain.graph, int(self.budget))
        dropped = tuple(name for name in names if name not in kept)
        decision = AdapterDecision(
            self.budget,
            limit,
            notes=(f"{len(kept)} of {len(names)} adapters stay; the others are gone from the graph",),
            facts={"kept": list(kept), "dropped": list(dropped)},
            kept=kept,
            dropped=dropped,
        )
        return chain.then(HardenAdapterWeights(dropped)), decision

    def compact(self, chain: Chain, decision: Decision, options: DeployOptions) -> Chain:
        """Dropped adapters leave the graph; those that stay are plain LoRA, and merge where that is asked for."""
        left = chain.then(DropSites(_own(decision).dropped))
        return left.then(FoldAdapters()) if options.fold else left

    def describe(
        self,
        sites: Mapping[str, DeployedSite],
        decision: Decision,
        graph_module: fx.GraphModule,  # noqa: ARG002
    ) -> Mapping[str, DeployedSite]:
        """Which adapters are gone."""
        gone = set(_own(decision).dropped)
        return {
            name: replace(site, form="dropped", mean_rank=0.0, update_share=0.0) if name in gone else site
            for name, site in sites.items()
        }


def _count(graph_module: fx.GraphModule) -> int:
    return len(adapter_names(required_sites(graph_module)))


def _kept(graph_module: fx.GraphModule, budget: int) -> tuple[str, ...]:
    """The adapters that stay: those that training chose, or the `budget` largest |ω| where it has not chosen yet.

    Raises:
        BudgetError: training chose another number.
    """
    weights = weights_by_name(graph_module)
    names = tuple(weights)
    if not all(bool(weight.frozen) for weight in weights.values()):
        sizes = [abs(float(weight.omega)) for weight in weights.values()]
        return tuple(names[index] for index in largest(sizes, budget))
    kept = tuple(name for name in names if float(weights[name].omega) != 0)
    if len(kept) != budget:
        raise BudgetError(
            f"The model kept {len(kept)} adapters in training; the others were not trained.",
            given=f"budget={budget}",
            expected=f"{len(kept)}",
            remedy="leave the budget out, or prepare and train with the budget that you want",
        )
    return kept


def _own(decision: Decision) -> AdapterDecision:
    if not isinstance(decision, AdapterDecision):
        raise PassError(f"A {type(decision).__name__} is no decision about adapters.")
    return decision
