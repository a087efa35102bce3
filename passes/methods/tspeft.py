"""TS-PEFT: only the tokens that an adapter changes enough take its update (Ma et al.), as passes over a graph.

    prepare    capture → [AttachLora] → InsertUpdateThresholds                            a model that trains
    training   τ of every site by its own optimiser (`models/threshold_optimizer.py`)
    optimize   FreezeRegularization → (r − τ on data) → HardenUpdateThresholds            the masked graph
               → SettleThresholds, folding → SkipUpdates                                  a model that serves

h_i = W0 x_i + 1[r_i ≥ τ]·M(x_i) with r_i = ‖M(x_i)‖/‖W0 x_i‖, for any update M that is added to a linear layer.

Where the paper is silent or contradicts itself, and where this deviates, each with its reason:
    * α of Eq. 20: §4.1 says both that τ shares the adapters' learning rate and that α = 1. With both at 1e-4 and
      s = 4e-5 no threshold would pass 1e-3 in its longest run, so α is the learning rate over its start: 1, falling
      with the schedule.
    * τ ≥ 0: Eq. 20 may step below zero, where every token takes the update as at zero and the way back only costs
      steps, so τ is clamped.
    * Sums over i run over the real tokens of all examples of an optimiser step (with gradient accumulation, of all its
      micro-batches); padding is left out.
    * ‖W0 x‖ is the size of what the layer answers, its bias included: the graph adds M to that.
    * μ_i of skipped tokens is taken as Eq. 9 has it; M gets no gradient from them, as in Eq. 2.
    * A budget, the share of tokens×sites that take the update: one level is added to the τ of all sites, follows the
      budget in training (from everything, over half of the run) and is calibrated on data for deployment. The paper
      has none: λ alone steers how many tokens are skipped, and how many is known only after training.
    * Deployed, M is not computed to decide: see `compact/updates.py`.

Gates that act before this one on the same update (weightlora, ccm) are part of M; gatera's acts on what is left.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import fx

from ...config import Budget, resolve_share
from ...errors import PassError
from ...models.configs.tspeft import TSPEFT
from ..chain import Chain
from ..contract import Pass
from ..decision import Decision
from ..find.added import find_added_sites
from ..find.hira import find_hira_sites
from ..find.required import required_sites
from ..find.thresholds import additive_sites, thresholds_of
from ..gate.update_threshold import InsertUpdateThresholds, masks_of
from ..harden.distill import LAST, distill, student_and_teacher
from ..harden.static_threshold import SettleThresholds
from ..harden.threshold_levels import collect_excess
from ..sites import DeployedSite
from .method import Batches, DeployOptions, FitQuality, ShareMethod
from .tspeft_deploy import (
    UNIT,
    ThresholdDecision,
    compact_thresholds,
    describe_sites,
    harden_thresholds,
    take_every_update,
)
from .tspeft_schedule import ThresholdSchedule

if TYPE_CHECKING:
    from ..gated import GatedModel

_REACH = 2.0  # in the median ratio of a site: how far fitting can move its τ


class TokenSelection(ShareMethod[TSPEFT]):
    """Thresholds on whole updates of one model; its budget is the share of tokens×sites that take the update."""

    name = "tspeft"
    unit = UNIT

    @classmethod
    def resolve_budget(cls, config: TSPEFT, budget: Budget | None, graph_module: fx.GraphModule) -> float | None:  # noqa: ARG003
        """The budget as a share in (0, 1]; None leaves the decision to the trained thresholds.

        Raises:
            SiteError: no adapters; BudgetError: no share.
        """
        if not additive_sites(graph_module):
            required_sites(graph_module)
        return None if budget is None else resolve_share(budget, unit=UNIT)

    def limit(self, graph_module: fx.GraphModule) -> float:  # noqa: ARG002
        """Every token at every site."""
        return 1.0

    def has_adapters(self, graph_module: fx.GraphModule) -> bool:
        """Whether a graph has an adapter of any kind that adds an update to a linear layer."""
        return bool(additive_sites(graph_module)) or super().has_adapters(graph_module)

    def adapter_tensors(self, graph_module: fx.GraphModule) -> frozenset[str]:
        """A and B of every site, and what adapters of other kinds train."""
        nodes = (node for site in find_hira_sites(graph_module) for node in (site.hira_a, site.hira_b))
        others = (name for site in find_added_sites(graph_module) for name in site.parameters)
        return super().adapter_tensors(graph_module) | {str(node.target) for node in nodes} | set(others)

    def gates(self) -> tuple[Pass, ...]:
        """One threshold per adapter."""
        return (InsertUpdateThresholds(self.config, self.budget),)

    def open_gates(self, graph_module: fx.GraphModule) -> tuple[Pass, ...]:  # noqa: ARG002
        """Every update taken by every token."""
        return (SettleThresholds(),)

    def schedule(
        self, model: GatedModel, total_steps: int, optimizer: torch.optim.Optimizer | None
    ) -> ThresholdSchedule:
        """The thresholds' own optimiser."""
        return ThresholdSchedule(model, total_steps, optimizer)

    def is_trained(self, graph_module: fx.GraphModule) -> bool:
        """Whether the thresholds were moved at all."""
        return any(int(gate.updates) > 0 for gate in thresholds_of(graph_module).values())

    def fit(self, model: GatedModel, data: Batches, *, steps: int, show: bool | None) -> FitQuality:
        """Fit the thresholds alone by distillation from the model that updates every token.

        One step is sized by each site's own ratios: the paper's step is for runs of ten thousands of them.
        """
        gates = thresholds_of(model.graph_module)
        for gate in gates.values():
            gate.budget = self.budget
        student, _ = student_and_teacher(model, self.name)
        ratios = collect_excess(student, data, masks_of(student), show=show)
        reach = {name: _REACH * float(values.median()) / steps for name, values in ratios.items()}
        schedule, shares = ThresholdSchedule(model, steps, None, reach), list[float]()
        divergence = distill(
            model,
            data,
            method=self.name,
            parameters=[],
            penalty=lambda: None,
            after=lambda: shares.append(schedule.step().update_share),
            steps=steps,
            show=show,
        )
        return FitQuality(self.name, steps, divergence, float(np.mean(shares[-LAST:])), UNIT)

    def trained_facts(self, graph_module: fx.GraphModule) -> Mapping[str, object]:
        """τ of every site, and the level that a budget adds to them all when no data calibrates it."""
        gates = thresholds_of(graph_module)
        levels = [float(gate.level) for gate in gates.values()] if self.budget is not None else []
        return {"level": max(levels, default=0.0), "thresholds": {name: float(g.tau) for name, g in gates.items()}}

    def harden(self, chain: Chain, data: Batches | None, options: DeployOptions) -> tuple[Chain, ThresholdDecision]:
        """Thresholds at a calibrated level; none where the budget takes everything."""
        if self.budget == self.limit(chain.graph):
            return take_every_update(chain)
        return harden_thresholds(chain, self.budget, data, options)

    def compact(self, chain: Chain, decision: Decision, options: DeployOptions) -> Chain:
        """Tokens below their threshold skip B."""
        return compact_thresholds(chain, _own(decision), options)

    def keep_calibration(self, graph_module: fx.GraphModule, decision: Decision) -> None:
        """Keep the calibrated level with the gates."""
        calibration = _own(decision).calibration
        if calibration is not None:
            for gate in thresholds_of(graph_module).values():
                gate.level.fill_(calibration.level)

    def describe(
        self, sites: Mapping[str, DeployedSite], decision: Decision, graph_module: fx.GraphModule
    ) -> Mapping[str, DeployedSite]:
        """Forms, and shares of tokens that take the update."""
        return describe_sites(sites, _own(decision), graph_module)


def _own(decision: Decision) -> ThresholdDecision:
    if not isinstance(decision, ThresholdDecision):
        raise PassError(f"A {type(decision).__name__} is no decision about tokens that skip updates.")
    return decision
