"""A deployed model: the compacted graph, the masked graph it must equal, and what was decided on the way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from ..config import Budget, resolve_budget
from ..errors import BudgetError
from ..models.configs.ccm import CCM
from ..models.gates import HardRankRouter
from ..models.task_loss import TaskLoss
from .cost import Form
from .graph.edit import get_tensor
from .harden.calibrate import Calibration
from .harden.rank_router import LEVEL
from .program import Answer, GraphProgram
from .report import Report


@dataclass(frozen=True)
class DeployedSite:
    """One adapter site of a deployed model.

    Attributes:
        form: "gathered", "masked", "lora" (its gate turned static) or "merged" (folded into the layer's weight).
        mean_rank: ranks computed per example on the calibration data, or all of them where none was given.
    """

    name: str
    d_in: int
    d_out: int
    rank: int
    form: str
    mean_rank: float

    def to_json(self) -> dict[str, object]:
        """Plain data for an artifact's manifest."""
        return asdict(self)


class DeployedModel(GraphProgram):
    """What `optimize` returns: call it like the model it came from.

    Attributes:
        method: the config; sites: every adapter site and the form it took.
        calibrated_budget: the budget of `optimize`, for which ranks were measured site by site.
        calibration: level and rank distribution on the calibration data; None without data or without routers.
    """

    def __init__(  # noqa: PLR0913  # keyword-only facts about one deployment
        self,
        graph_module: fx.GraphModule,
        reference: fx.GraphModule,
        *,
        method: CCM,
        budget: float,
        sites: tuple[DeployedSite, ...],
        calibration: Calibration | None,
        loss: TaskLoss,
        model_config: Any,
        report: Report,
    ) -> None:
        super().__init__(graph_module, loss=loss, model_config=model_config, report=report)
        self._reference = GraphProgram(reference, loss=loss, model_config=model_config, report=report)
        self.method = method
        self.sites = sites
        self.calibration = calibration
        self.calibrated_budget = budget
        self._calibrated_sites = sites
        self._budget = budget
        self.eval()
        self.requires_grad_(False)

    def reference(self, **inputs: object) -> Answer:
        """The dense, masked graph of the same hardened gates on the same inputs: what `self(**inputs)` must equal."""
        return self._reference.answer(inputs)

    @property
    def reference_graph(self) -> fx.GraphModule:
        """The masked graph itself."""
        return self._reference.graph_module

    def train(self, mode: bool = True) -> DeployedModel:  # noqa: ARG002  # torch's signature
        """Stay in eval mode: a deployed model has nothing that trains."""
        super().train(False)
        return self

    def hard_routers(self) -> tuple[HardRankRouter, ...]:
        """The deployed routers; both graphs share them."""
        return tuple(m for m in self.graph_module.modules() if isinstance(m, HardRankRouter))

    @property
    def budget(self) -> float:
        """Mean ranks per example and site; may be set to any budget the calibration covers."""
        return self._budget

    @budget.setter
    def budget(self, budget: Budget) -> None:
        if self.calibration is None or not self.hard_routers():
            raise BudgetError(
                "This model's budget cannot change at run time.",
                given=f"budget={budget!r}",
                expected="a model optimized with data= and at least one routed site",
                remedy="call gatefx.optimize(model, budget=…, data=calibration_batches)",
            )
        ranks = resolve_budget(budget, limit=max(site.rank for site in self.sites))
        level = self.calibration.level_for(ranks)
        # Both graphs start with one tensor, but moving or casting a module gives each its own.
        for graph in (self.graph_module, self.reference_graph):
            get_tensor(graph, LEVEL).fill_(level)
        self._budget = ranks
        self.sites = self._calibrated_sites if ranks == self.calibrated_budget else tuple(self._sites_at(ranks))

    def _sites_at(self, budget: float) -> Iterator[DeployedSite]:
        """The sites under a budget whose rank per site was not measured: the routed ones get the mean."""
        for site in self._calibrated_sites:
            routed = site.form in (Form.GATHERED, Form.MASKED)
            yield replace(site, mean_rank=min(budget, site.rank)) if routed else site

    @torch.no_grad()
    def effective_ranks(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """k(x) of each example and routed site on a batch: (B, S), in router order."""
        counts: list[Tensor] = []
        handles = [
            router.register_forward_hook(lambda _module, _inputs, indices: counts.append((indices >= 0).sum(-1)))
            for router in self.hard_routers()
        ]
        try:
            self.answer(inputs)
        finally:
            for handle in handles:
                handle.remove()
        return torch.cat(counts, dim=1) if counts else torch.empty(0, 0)
