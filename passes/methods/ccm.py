"""CCM-LoRA: dynamic rank routing (Rafiuddin and Abdullah), as passes over a captured graph.

    prepare    capture → [AttachLora] → InsertRankRouter                              a model that trains
    optimize   FreezeRegularization → (scores on data) → HardenRankRouters            the masked graph
               → FreezeStaticGates → FoldAdapters → CompactRanks where it is cheaper  a model that serves

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

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from ...config import Budget, resolve_budget
from ...errors import BudgetError, PassError, UntrainedGateError
from ...models.configs.ccm import CCM
from ...models.gate_records import gates_among
from ...models.gates import RankRouter
from ...models.objectives import gate_loss
from ..chain import Chain
from ..contract import Pass
from ..cost import Form
from ..decision import Decision
from ..find.adapters import find_sites
from ..find.required import required_sites
from ..gate.rank_router import InsertRankRouter
from ..harden.calibrate import Calibration, calibrate, collect_scores
from ..harden.distill import distill, student_and_teacher
from ..harden.static_gates import open_every_gate
from ..sites import DeployedSite
from .ccm_deploy import RankDecision, compact_ranks, harden_ranks, keep_every_rank, rule_of
from .ccm_schedule import GateSchedule, routers_of
from .method import Batches, DeployOptions, FitQuality, Method

if TYPE_CHECKING:
    from ..gated import GatedModel

_DEFAULT_BUDGET = 6


class RankRouting(Method[CCM]):
    """Dynamic rank routing on one model; its budget is E[k], the mean ranks per example and site."""

    name = "ccm"
    unit = "ranks"
    budget: float

    @classmethod
    def resolve_budget(cls, config: CCM, budget: Budget | None, graph_module: fx.GraphModule) -> float:  # noqa: ARG003
        """The budget in ranks. Where ranks differ, a mean over the sites cannot be any number.

        Raises:
            SiteError: no sites; BudgetError: no budget, or one above the mean rank of the sites that does not keep all.
        """
        ranks = _site_ranks(graph_module)
        limit, mean = max(ranks), sum(ranks) / len(ranks)
        wanted = resolve_budget(min(_DEFAULT_BUDGET, limit) if budget is None else budget, limit=limit)
        if mean < wanted < limit:
            raise BudgetError(
                f"The budget asks for {wanted:g} ranks on average where the sites have {mean:g} on average.",
                given=f"budget={budget!r}, sites of rank {min(ranks)} to {limit}",
                expected=f"at most {mean:g} ranks, or 100% to keep all",
                remedy="pass a smaller budget: it is the mean over sites of the ranks an example gets",
            )
        return wanted

    def limit(self, graph_module: fx.GraphModule) -> float:
        """The largest rank."""
        return float(max(_site_ranks(graph_module)))

    def gates(self) -> tuple[Pass, ...]:
        """One router (or one per site) in front of every adapter."""
        return (InsertRankRouter(self.config, self.budget),)

    def open_gates(self, graph_module: fx.GraphModule) -> tuple[Pass, ...]:
        """Every rank direction on."""
        return (open_every_gate(graph_module),)

    def loss(self, model: GatedModel, outputs: Mapping[str, Tensor]) -> Tensor:  # noqa: ARG002
        """Budget, entropy and smoothness terms on the last batch."""
        return gate_loss(gates_among(model.graph_module, RankRouter))

    def schedule(
        self,
        model: GatedModel,
        total_steps: int,
        optimizer: torch.optim.Optimizer | None,  # noqa: ARG002
    ) -> GateSchedule:
        """Temperature, coverage and penalty."""
        return GateSchedule(model, total_steps)

    def is_trained(self, graph_module: fx.GraphModule) -> bool:
        """Whether the schedule was stepped.

        Raises:
            UntrainedGateError: weights that moved without it: nothing drove them to the budget.
        """
        routers = routers_of(graph_module)
        if any(int(router.updates) > 0 for router in routers):
            return True
        if any(router.has_moved() for router in routers):
            raise UntrainedGateError(
                "The routers were trained without their schedule, so nothing drove them to the budget.",
                given="trained router weights, 0 schedule steps",
                expected="schedule.step() after each optimiser step",
                remedy="train with schedule = gated.schedule(total_steps), or gatefx.GateCallback in the HF Trainer",
            )
        return False

    def fit(self, model: GatedModel, data: Batches, *, steps: int, show: bool | None) -> FitQuality:
        """Fit the routers alone by distillation from the model with its gates open."""
        routers = routers_of(model.graph_module)
        for router in routers:
            router.budget = self.budget
        schedule = GateSchedule(model, steps)
        divergence = distill(
            model,
            data,
            method=self.name,
            parameters=[parameter for router in routers for parameter in router.parameters()],
            penalty=lambda: gate_loss(routers),
            after=schedule.step,
            steps=steps,
            show=show,
        )
        # c lags behind routers that still move; what they take in the end is solved on all of the data.
        student, _ = student_and_teacher(model, self.name)
        settled = calibrate(
            collect_scores(student, data, show=show), self.budget, rule=rule_of(self.config),
            k_min=self.config.k_min, buckets=self.config.buckets,
        )  # fmt: skip
        _keep_level(routers, settled)
        return FitQuality(self.name, steps, divergence, settled.ranks.mean, "ranks on average")

    def harden(self, chain: Chain, data: Batches | None, options: DeployOptions) -> tuple[Chain, Decision]:
        """Routers → hard decisions at a calibrated level; none are left where the budget keeps every rank."""
        if self.budget == self.limit(chain.graph):
            return keep_every_rank(chain, self.budget, fold=bool(options.fold))
        return harden_ranks(chain, self.config, self.budget, data, options)

    def compact(self, chain: Chain, decision: Decision, options: DeployOptions) -> Chain:
        """The cheaper exact form at every site."""
        return compact_ranks(chain, _own(decision), options)

    def keep_calibration(self, graph_module: fx.GraphModule, decision: Decision) -> None:
        """The level of the coverage, where ranks are chosen by it."""
        calibration = _own(decision).calibration
        if calibration is not None:
            _keep_level(routers_of(graph_module), calibration)

    def describe(
        self, sites: Mapping[str, DeployedSite], decision: Decision, graph_module: fx.GraphModule
    ) -> Mapping[str, DeployedSite]:
        """Mean ranks and forms."""
        decided = _own(decision)
        left = {site.name: site for site in find_sites(graph_module)[0]}
        refined = dict(sites)
        for name, site in sites.items():
            if site.form == "dropped":
                continue
            if name in left:
                form = "lora" if left[name].gate is None else str(Form.MASKED)
            else:
                form = str(Form.GATHERED if decided.forms.get(name) == Form.GATHERED else Form.MERGED)
            mean = decided.site_ranks.get(name, self.budget)
            refined[name] = replace(site, mean_rank=min(mean, site.rank), form=form)
        return refined


def _site_ranks(graph_module: fx.GraphModule) -> list[int]:
    return [site.rank for site in required_sites(graph_module)]


def _keep_level(routers: Sequence[RankRouter], calibration: Calibration) -> None:
    if calibration.rule == "coverage":
        for router in routers:
            router.level.fill_(calibration.level)


def _own(decision: Decision) -> RankDecision:
    if not isinstance(decision, RankDecision):
        raise PassError(f"A {type(decision).__name__} is no decision about ranks.")
    return decision
