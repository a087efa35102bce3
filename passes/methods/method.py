"""The contract of a method: what it inserts, what trains it, what fits it without training, what deploys it.

    prepare    adapters() → gates()                              a model that trains
    training   before() · forward · loss() · schedule().step()   one optimiser step
    optimize   fit() if never trained → harden() → compact()     the masked graph, then the one that does less work

A method object holds its config and budget; everything that training changes lives in the graph's modules and
buffers, so that a state_dict is the whole state. Method after method acts on one graph, in the catalogue's order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, fx

from ...config import AdapterConfig, Budget, Flops, resolve_share
from ...errors import BudgetError
from ..chain import Chain
from ..contract import Pass
from ..cost import Workload
from ..decision import Decision
from ..find.adapters import find_sites
from ..find.required import required_sites
from ..gate.lora import AttachLora
from ..sites import DeployedSite

if TYPE_CHECKING:
    from ..gated import GatedModel

Config = TypeVar("Config", bound=AdapterConfig)
Batches = Sequence[Mapping[str, Tensor]]


@dataclass(frozen=True)
class DeployOptions:
    """How to deploy.

    Attributes:
        workload: (batch, tokens) that the cost model prices; engine: whose measured constants it uses.
        fold: fold ungated sites into their layers: None folds those whose gate is constant, True all of them (deploying
            refuses what is left), False none.
        freeze_static: also freeze gates that never varied on the calibration data (approximate).
        forms: None lets the cost model choose; "masked" keeps every site's masked form, "gathered" compacts every one.
        verify: check graph legality and pass claims after every pass; show: progress bars.
    """

    workload: Workload
    engine: str = "onnxruntime"
    fold: bool | None = None
    freeze_static: bool = False
    forms: str | None = None
    verify: bool = False
    show: bool | None = None


@dataclass(frozen=True)
class FitQuality:
    """How near gates come that were fitted without training the model.

    Attributes:
        method: whose gates; steps: optimiser steps, 0 for a closed form.
        divergence: mean KL in nats from the ungated model's answers to the gated one's, on the fitting data.
        achieved: the budget's unit as it came out on that data (ranks, share of tokens, sites); unit: its name.
    """

    method: str
    steps: int
    divergence: float
    achieved: float
    unit: str

    def to_json(self, budget: float | None) -> dict[str, object]:
        """Plain data for a report's facts, beside the budget that was aimed at."""
        return {
            "steps": self.steps,
            "divergence": self.divergence,
            "budget": budget,
            "achieved": self.achieved,
            "unit": self.unit,
        }

    def __str__(self) -> str:
        how = f"by distillation in {self.steps} steps" if self.steps else "in closed form"
        return (
            f"{self.method}: gates fitted {how}: KL {self.divergence:.4f} to the ungated model, "
            f"{self.achieved:.3g} {self.unit}"
        )


class MethodSchedule(ABC):
    """What moves a method's gates over a training run, called once after every optimiser step."""

    @abstractmethod
    def step(self) -> object:
        """Observe the last batch and move what the method moves; the step's diagnostics."""

    @abstractmethod
    def figures(self) -> Mapping[str, float]:
        """The last step's figures by name, for training logs; empty before the first step."""


class Method(ABC, Generic[Config]):
    """One paper's gates on one model.

    Attributes:
        config: the options; budget: in the method's unit, None where trained gates decide alone.
    """

    #: The paper's name in `method=`, reports and files.
    name: ClassVar[str]
    #: What the budget counts.
    unit: ClassVar[str]

    def __init__(self, config: Config, budget: float | None) -> None:
        self.config = config
        self.budget = budget

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.config!r}, budget={self.budget!r})"

    @classmethod
    def check_budget(cls, config: Config, budget: Budget | None) -> None:  # most budgets depend on the model's sites
        """Called before a model is captured, which takes long: refuse a budget that makes no sense on any model.

        Raises:
            BudgetError: such a budget.
        """

    @classmethod
    @abstractmethod
    def resolve_budget(cls, config: Config, budget: Budget | None, graph_module: fx.GraphModule) -> float | None:
        """The budget in the method's unit on a graph with adapters (before or after gates are inserted).

        Raises:
            BudgetError: a budget that makes no sense there.
        """

    def spend(self, model: GatedModel, flops: Flops, data: Batches | None, *, show: bool | None) -> None:  # noqa: ARG002
        """Turn a budget in FLOPs into this method's options and budget on `model`, in place, gates included.

        Args:
            data: unlabelled batches to choose by; show: a progress bar (None: on a terminal).

        Raises:
            BudgetError: the method has nothing to choose by FLOPs, there is no data, or no choice costs as little.
        """
        raise BudgetError(
            f"{self.name} takes no budget in FLOPs.",
            given=str(flops),
            expected=f"a budget in {self.unit}; FLOPs are masklora's, whose cuts they choose",
        )

    @abstractmethod
    def limit(self, graph_module: fx.GraphModule) -> float:
        """The budget that keeps everything."""

    def adapters(self) -> Pass:
        """The pass that attaches adapters to a model without any: LoRA, unless the method brings its own kind."""
        return lora_for(self.config)

    def has_adapters(self, graph_module: fx.GraphModule) -> bool:
        """Whether a graph has adapters that this method can gate: LoRA, unless the method takes other kinds too.

        Raises:
            SiteError: adapters that come near and cannot be gated: attaching new ones would make another model.
        """
        sites, misses = find_sites(graph_module)
        if misses and not sites:
            required_sites(graph_module)
        return bool(sites)

    def adapter_tensors(self, graph_module: fx.GraphModule) -> frozenset[str]:
        """Names of the adapters' own tensors, which train."""
        nodes = (node for site in find_sites(graph_module)[0] for node in (site.lora_a, site.lora_b))
        return frozenset(str(node.target) for node in nodes)

    @abstractmethod
    def gates(self) -> tuple[Pass, ...]:
        """The passes that insert the gates into a graph with adapters."""

    @abstractmethod
    def open_gates(self, graph_module: fx.GraphModule) -> tuple[Pass, ...]:
        """The passes that take the gates out again, which leaves the plain adapters bit for bit."""

    def before(self, model: GatedModel, tensors: Sequence[Tensor]) -> None:  # most methods need nothing
        """Called with the graph's inputs before each forward in training mode."""

    def loss(self, model: GatedModel, outputs: Mapping[str, Tensor]) -> Tensor | None:  # noqa: ARG002
        """The gates' terms of the objective on the last batch, a scalar; None where the method has none.

        Raises:
            UntrainedGateError: the model was not called yet.
        """
        return None

    @abstractmethod
    def schedule(self, model: GatedModel, total_steps: int, optimizer: torch.optim.Optimizer | None) -> MethodSchedule:
        """What moves the gates over `total_steps` optimiser steps; `optimizer` where the method edits it.

        Raises:
            InputError: no optimizer where the method must have one.
        """

    @abstractmethod
    def is_trained(self, graph_module: fx.GraphModule) -> bool:
        """Whether the gates have learned anything: deploying them as they are makes sense.

        Raises:
            UntrainedGateError: they were trained in a way that cannot work, such as without their schedule.
        """

    @abstractmethod
    def fit(self, model: GatedModel, data: Batches, *, steps: int, show: bool | None) -> FitQuality:
        """Fit gates that were never trained to reproduce the ungated model within the budget; in place on `model`.

        Args:
            data: unlabelled batches; steps: optimiser steps at most; show: a progress bar (None: on a terminal).
        """

    @abstractmethod
    def harden(self, chain: Chain, data: Batches | None, options: DeployOptions) -> tuple[Chain, Decision]:
        """Gates → hard, calibrated decisions: the dense, masked graph, which says what compaction must equal.

        The graph is frozen (no dropout) and in eval mode. Methods that act later still have their trained gates.

        Raises:
            UntrainedGateError, BudgetError: data is None where a decision needs it.
        """

    @abstractmethod
    def compact(self, chain: Chain, decision: Decision, options: DeployOptions) -> Chain:
        """Decisions → work that is not done. Exact. Places that another method's gates keep dense are declined."""

    def trained_facts(self, graph_module: fx.GraphModule) -> Mapping[str, object]:  # noqa: ARG002
        """What the trained gates say without data, as plain data for the manifest of saved gates."""
        return {}

    def keep_calibration(self, graph_module: fx.GraphModule, decision: Decision) -> None:
        """Write what deployment calibrated into the trained gates, so that deploying them without data keeps it."""

    def describe(
        self,
        sites: Mapping[str, DeployedSite],
        decision: Decision,  # noqa: ARG002
        graph_module: fx.GraphModule,  # noqa: ARG002
    ) -> Mapping[str, DeployedSite]:
        """The sites' rows, refined by what this method did to them; `graph_module` is the compacted graph.

        Called in the order in which methods act; a row whose form is "dropped" stays as it is.
        """
        return sites


class ShareMethod(Method[Config]):
    """A method whose budget is a share."""

    @classmethod
    def check_budget(cls, config: Config, budget: Budget | None) -> None:  # noqa: ARG003
        """Refuse what is no share in (0, 1].

        Raises:
            BudgetError: no share.
        """
        if budget is not None:
            resolve_share(budget, unit=cls.unit)


def lora_for(config: AdapterConfig) -> AttachLora:
    """The pass that attaches the LoRA a config describes."""
    return AttachLora(
        config.rank,
        config.scale_alpha,
        config.lora_dropout,
        config.target_modules,
        exclude=config.exclude_modules,
        layers=config.layers_to_transform,
        whole=config.train_modules or (),
    )
