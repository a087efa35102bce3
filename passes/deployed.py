"""A deployed model: the compacted graph, the masked graph it must equal, and what was decided on the way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from ..config import AdapterConfig, Budget, resolve_budget, resolve_share
from ..errors import BudgetError, MethodError
from ..models.gates import HardRankRouter
from ..models.task_loss import TaskLoss
from .decision import Decision
from .decode.programs import DecoderPrograms
from .graph.edit import get_tensor
from .harden.calibrate import Calibration
from .methods.ccm_deploy import RankDecision
from .program import Answer
from .recovery import RecoveringProgram
from .report import Report
from .sites import DeployedSite, sites_at

if TYPE_CHECKING:
    from .lower.cpu_program import CpuProgram


class DeployedModel(RecoveringProgram):
    """What `optimize` returns: call it like the model it came from.

    Attributes:
        methods: name → the method's config, in the order in which they act; decisions: what each decided.
        sites: every adapter site and the form it took.
        trained: names of parameters that were trained beside adapters and gates: heads, biases.
        programs: the graphs that generate, of a decoder; they follow the budget too.
    """

    def __init__(  # noqa: PLR0913  # keyword-only facts about one deployment
        self,
        graph_module: fx.GraphModule,
        reference: fx.GraphModule,
        *,
        methods: Mapping[str, AdapterConfig],
        decisions: Mapping[str, Decision],
        sites: tuple[DeployedSite, ...],
        trained: frozenset[str],
        programs: DecoderPrograms | None,
        loss: TaskLoss,
        model_config: Any,
        report: Report,
    ) -> None:
        super().__init__(graph_module, loss=loss, model_config=model_config, report=report)
        self._reference = RecoveringProgram(reference, loss=loss, model_config=model_config, report=report)
        self.methods = dict(methods)
        self.decisions = dict(decisions)
        rules = (decision.recovery for decision in decisions.values())
        self.recovery = self._reference.recovery = next((rule for rule in rules if rule is not None), None)
        self.trained = trained
        self.programs = programs
        graphs = [programs.prefill, programs.decode, programs.reference] if programs is not None else []
        self._programs = nn.ModuleList(graphs)  # so that they move and cast with the model
        self._lowered: list[fx.GraphModule] = []  # graphs that follow the budget, and are no parts of this model
        self.sites = sites
        self._calibrated_sites = sites
        self._budgets = self.calibrated_budgets
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

    @property
    def method(self) -> AdapterConfig:
        """The config of the model's only method.

        Raises:
            MethodError: the model has several; see `methods`.
        """
        if len(self.methods) > 1:
            raise MethodError("The model has several methods.", given=", ".join(self.methods), expected="model.methods")
        return next(iter(self.methods.values()))

    @property
    def calibration(self) -> Calibration | None:
        """Level and rank distribution of a rank routing on the calibration data; None without data or routing."""
        decision = self.decisions.get("ccm")
        return decision.calibration if isinstance(decision, RankDecision) else None

    @property
    def calibrated_budgets(self) -> dict[str, float | None]:
        """The budgets of `optimize`, for which the sites were measured."""
        return {name: decision.budget for name, decision in self.decisions.items()}

    @property
    def budgets(self) -> dict[str, float | None]:
        """The budgets in force, by method."""
        return dict(self._budgets)

    @property
    def budget(self) -> Any:
        """The budget in force, in the method's unit; of several methods a dict by name.

        May be set to any budget that the calibration covers: a number or a share, of several methods a dict with
        those that change.
        """
        return next(iter(self._budgets.values())) if len(self._budgets) == 1 else self.budgets

    @budget.setter
    def budget(self, budget: Budget | Mapping[str, Budget]) -> None:
        self._spend({name: self._resolved(name, value) for name, value in self._by_method(budget).items()})

    def resolved_budget(self, budget: Budget | Mapping[str, Budget]) -> Any:
        """What `self.budget` would be if `budget` were set.

        Raises:
            BudgetError: it could not be set.
        """
        found = {name: self._resolved(name, value) for name, value in self._by_method(budget).items()}
        budgets = self._budgets | found
        return next(iter(budgets.values())) if len(budgets) == 1 else budgets

    @contextmanager
    def at_budget(self, resolved: Any) -> Iterator[None]:
        """Spend what `resolved_budget` answered, for a while."""
        standing = {name: value for name, value in self._budgets.items() if value is not None}
        wanted = resolved if isinstance(resolved, Mapping) else dict.fromkeys(self._budgets, resolved)
        changed = {name: value for name, value in wanted.items() if value != standing.get(name) and value is not None}
        self._spend(changed)
        try:
            yield
        finally:
            self._spend({name: standing[name] for name in changed})

    def _spend(self, resolved: Mapping[str, float]) -> None:
        for name, number in resolved.items():
            runtime = self.decisions[name].runtime
            if runtime is not None:
                value = runtime.value(number)
                # The graphs start with one tensor, but moving or casting a module gives each its own.
                for graph in (self.graph_module, self.reference_graph, *self._programs, *self._lowered):
                    if runtime.buffer in dict(graph.named_buffers()):
                        get_tensor(graph, runtime.buffer).fill_(value)
        self._budgets |= resolved
        same = self._budgets == self.calibrated_budgets
        self.sites = self._calibrated_sites if same else sites_at(self._calibrated_sites, self._budgets)

    def for_transformers(self) -> Any:
        """A module with transformers' `generate`, over this model's parameters: beams, processors, streamers.

        Raises:
            InputError: the model cannot generate; MissingDependencyError: transformers is not installed.
        """
        from .decode.hf_generation import TransformersDecoder

        return TransformersDecoder(self)

    def for_cpu(self) -> CpuProgram:
        """The same function in torch on this CPU by the native kernels, over weights that are packed for them once.

        It follows this model's budget. The packed layers are copies and the rest is this model's own, so neither of
        them is to move or be cast while both are in use.

        Raises:
            ProviderError: the native kernels are not there, or no layer can run by them; says why.
        """
        from .lower.cpu import lower_cpu

        lowered = lower_cpu(self)
        self._lowered.append(lowered.graph_module)
        return lowered

    def save_adapter(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write the adapters as plain LoRA in PEFT's format, for models that decide nothing more (weightlora's).

        Raises:
            SiteError: the model still decides, or its adapters are no plain LoRA.
            ArtifactError: the folder exists and overwrite is False.
        """
        from .adapter_files import save_adapter

        return save_adapter(self, folder, overwrite=overwrite)

    def changeable(self) -> tuple[str, ...]:
        """The methods whose budget may change at run time: what they decide is still read in the compacted graph."""
        buffers = dict(self.graph_module.named_buffers())
        return tuple(
            name
            for name, decision in self.decisions.items()
            if decision.runtime is not None and decision.runtime.buffer in buffers
        )

    def hard_routers(self) -> tuple[HardRankRouter, ...]:
        """The deployed routers; both graphs share them."""
        return tuple(m for m in self.graph_module.modules() if isinstance(m, HardRankRouter))

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

    def _by_method(self, budget: Budget | Mapping[str, Budget]) -> Mapping[str, Budget]:
        if not isinstance(budget, Mapping):
            if len(self.methods) > 1:
                raise BudgetError(
                    "The model has several methods.",
                    given=f"budget={budget!r}",
                    expected=f"a dict with some of {', '.join(self.methods)}",
                )
            return {next(iter(self.methods)): budget}
        unknown = [name for name in budget if name not in self.methods]
        if unknown:
            raise BudgetError(
                "The model has no such method.", given=", ".join(unknown), expected=", ".join(self.methods)
            )
        return budget

    def _resolved(self, name: str, budget: Budget) -> float:
        """A budget in the method's unit, which its table covers."""
        decision = self.decisions[name]
        if decision.runtime is None or name not in self.changeable():
            raise BudgetError(
                "This model's budget cannot change at run time.",
                given=f"budget={budget!r} ({name})",
                expected="a model optimized with data= and at least one gate that is left",
                remedy="call gatefx.optimize(model, budget=…, data=calibration_batches)",
            )
        if decision.limit == 1:
            number = resolve_share(budget, unit=decision.runtime.unit)
        else:
            number = resolve_budget(budget, limit=int(decision.limit), unit=decision.runtime.unit)
        decision.runtime.value(number)
        return number
