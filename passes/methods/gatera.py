"""GateRA: token-wise modulation of an adapter's update (Ou, Jiang, Du and Snoek), as passes over a captured graph.

    prepare    capture → [AttachHira or AttachLora] → InsertModulation                   a model that trains
    optimize   FreezeRegularization → (logits on data) → HardenModulations               the masked graph
               → SettleModulations, folding → RouteUpdates → PrecomputeHira              a model that serves

y = W0 x + g(x)·(W0 ⊙ B A) x with g(x) = σ(wᵀx + b), one number per token and site, and +β·H(g) in the objective.

Deviations from the paper, each with its reason:
    * deployed gates are hard: entropy drives g to 0 and 1, and then a token needs one weight of two and one product;
      `gate="soft"` keeps the paper's g;
    * a budget, the share of tokens×sites that take the update: two more terms of the objective train towards it;
    * `update="lora"` gates s·B A instead: HiRA sites have no rank directions that other methods could act on.

Where a layer reads a pooled state (B, d) its gate is one number per example; in a decoder that decodes a token at a
time it is one per call. Both are what "per token" means there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, fx

from ...config import Budget, resolve_share
from ...errors import MethodError, PassError
from ...models.configs.gatera import GateRA
from ...models.gate_records import gates_among
from ...models.modulation import Modulation
from ...models.modulation_objective import modulation_loss
from ..chain import Chain
from ..contract import Pass
from ..decision import Decision
from ..find.hira import HiraSite, find_hira_sites
from ..find.modulations import modulations_of, update_sites
from ..find.required import required_sites
from ..gate.hira import AttachHira
from ..gate.modulation import InsertModulation
from ..harden.distill import LAST, distill
from ..harden.static_modulation import SettleModulations
from ..sites import DeployedSite
from .gatera_deploy import (
    UNIT,
    ModulationDecision,
    choose_hard,
    compact_updates,
    describe_sites,
    keep_soft,
    level_without_data,
    take_every_update,
)
from .gatera_schedule import ModulationSchedule
from .method import Batches, DeployOptions, FitQuality, ShareMethod, lora_for

if TYPE_CHECKING:
    from ..gated import GatedModel


class TokenModulation(ShareMethod[GateRA]):
    """Gates on whole updates of one model; its budget is the share of tokens×sites that take the update."""

    name = "gatera"
    unit = UNIT

    @classmethod
    def resolve_budget(cls, config: GateRA, budget: Budget | None, graph_module: fx.GraphModule) -> float | None:
        """The budget as a share in (0, 1]; None leaves the decision to the trained gates.

        Raises:
            MethodError: adapters of the other kind; SiteError: no adapters; BudgetError: no share.
        """
        if not _own_kind(config, graph_module):
            required_sites(graph_module)
        return None if budget is None else resolve_share(budget, unit=UNIT)

    def limit(self, graph_module: fx.GraphModule) -> float:  # noqa: ARG002
        """Every token at every site."""
        return 1.0

    def adapters(self) -> Pass:
        """HiRA, as the paper has it, or LoRA."""
        config = self.config
        if config.update == "lora":
            return lora_for(config)
        return AttachHira(
            config.rank,
            config.lora_dropout,
            config.target_modules,
            config.scale,
            exclude=config.exclude_modules,
            layers=config.layers_to_transform,
            whole=config.train_modules or (),
        )

    def has_adapters(self, graph_module: fx.GraphModule) -> bool:
        """Whether a graph has adapters of the config's kind.

        Raises:
            MethodError: it has adapters of the other kind.
        """
        found = _own_kind(self.config, graph_module)
        return found if self.config.update == "hira" else super().has_adapters(graph_module)

    def adapter_tensors(self, graph_module: fx.GraphModule) -> frozenset[str]:
        """A and B of every site."""
        nodes = (node for site in find_hira_sites(graph_module) for node in (site.hira_a, site.hira_b))
        return super().adapter_tensors(graph_module) | {str(node.target) for node in nodes}

    def gates(self) -> tuple[Pass, ...]:
        """One modulation per site."""
        return (InsertModulation(self.config, self.budget),)

    def open_gates(self, graph_module: fx.GraphModule) -> tuple[Pass, ...]:  # noqa: ARG002
        """Every update taken whole."""
        return (SettleModulations(),)

    def loss(self, model: GatedModel, outputs: Mapping[str, Tensor]) -> Tensor:  # noqa: ARG002
        """Entropy and budget terms on the last batch."""
        return modulation_loss(gates_among(model.graph_module, Modulation))

    def schedule(
        self,
        model: GatedModel,
        total_steps: int,  # noqa: ARG002
        optimizer: torch.optim.Optimizer | None,  # noqa: ARG002
    ) -> ModulationSchedule:
        """The budget's multiplier."""
        return ModulationSchedule(model)

    def is_trained(self, graph_module: fx.GraphModule) -> bool:
        """Whether any gate's weights are no longer its first ones; without a budget no schedule is needed for that."""
        return any(gate.has_moved() or int(gate.updates) > 0 for gate in modulations_of(graph_module))

    def fit(self, model: GatedModel, data: Batches, *, steps: int, show: bool | None) -> FitQuality:
        """Fit the gates alone by distillation from the model with its gates open."""
        gates = modulations_of(model.graph_module)
        for gate in gates:
            gate.budget = self.budget
        schedule, means = ModulationSchedule(model), list[float]()
        divergence = distill(
            model,
            data,
            method=self.name,
            parameters=[parameter for gate in gates for parameter in gate.parameters()],
            penalty=lambda: modulation_loss(gates),
            after=lambda: means.append(schedule.step().mean),
            steps=steps,
            show=show,
        )
        return FitQuality(self.name, steps, divergence, float(np.mean(means[-LAST:])), "mean gate")

    def trained_facts(self, graph_module: fx.GraphModule) -> Mapping[str, object]:
        """Whether gates are deployed hard or soft, and the threshold of hard ones when no data calibrates it."""
        if self.config.gate == "soft":
            return {"gate": "soft"}
        level, _ = level_without_data(graph_module, self.config, self.budget)
        return {"gate": "hard", "threshold": float(torch.sigmoid(torch.tensor(level)))}

    def harden(self, chain: Chain, data: Batches | None, options: DeployOptions) -> tuple[Chain, ModulationDecision]:
        """Gates → choices at a calibrated threshold, or the soft gates; none where the budget takes everything."""
        if self.budget == self.limit(chain.graph):
            return take_every_update(chain)
        if self.config.gate == "soft":
            return keep_soft(chain, self.budget, data, options)
        return choose_hard(chain, self.config, self.budget, data, options)

    def compact(self, chain: Chain, decision: Decision, options: DeployOptions) -> Chain:
        """Each token through one of two weights."""
        return compact_updates(chain, self.config, _own(decision), options)

    def keep_calibration(self, graph_module: fx.GraphModule, decision: Decision) -> None:
        """Keep the calibrated threshold with the gates."""
        calibration = _own(decision).calibration
        if calibration is not None:
            for gate in modulations_of(graph_module):
                gate.level.fill_(calibration.level)

    def describe(
        self, sites: Mapping[str, DeployedSite], decision: Decision, graph_module: fx.GraphModule
    ) -> Mapping[str, DeployedSite]:
        """Forms, and shares of tokens that take the update."""
        return describe_sites(sites, _own(decision), graph_module)


def _own_kind(config: GateRA, graph_module: fx.GraphModule) -> bool:
    """Whether the graph has adapters of the config's kind.

    Raises:
        MethodError: it has adapters of the other kind alone.
    """
    sites = update_sites(graph_module)
    if not sites:
        return False
    kinds = {"hira" if isinstance(site, HiraSite) else "lora" for site in sites}
    if kinds != {config.update}:
        other = "lora" if config.update == "hira" else "hira"
        raise MethodError(
            f"gatera is to gate {_NAMES[config.update]}, and the model carries {_NAMES[other]}.",
            given=f"update={config.update!r}, {sites[0].name} with {_NAMES[other]}",
            expected=f"GateRA(update={other!r}), or a model without adapters",
            remedy=f'pass method=gatefx.methods.GateRA(update="{other}"); beside other methods it gates LoRA',
        )
    return True


_NAMES = {"hira": "HiRA", "lora": "LoRA"}


def _own(decision: Decision) -> ModulationDecision:
    if not isinstance(decision, ModulationDecision):
        raise PassError(f"A {type(decision).__name__} is no decision about whole updates.")
    return decision
