"""WeightLoRA's choice in training: warm-up, then dropped adapters leave the optimiser and kept ones start afresh.

The state lives in the weights' buffers, so that a state_dict saved during the warm-up resumes bit for bit. Groups of
the optimiser are edited in place, because learning-rate schedulers hold on to them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn

from ...errors import InputError, MethodError
from ...models.configs.weightlora import WeightLoRA
from ...models.iterative_thresholding import largest, threshold_step
from ..chain import Chain
from ..find.adapter_weights import weights_by_name
from ..find.adapters import find_sites
from ..gate.rank_growth import StartSitesAfresh
from ..graph.edit import get_tensor
from .method import MethodSchedule

if TYPE_CHECKING:
    from ..gated import GatedModel


@dataclass(frozen=True)
class Selection:
    """What the choice kept, and what it saved.

    Attributes:
        kept, dropped: names of adapters.
        parameters: trained in adapters before; parameters_left: and after.
        optimizer_bytes: state that the optimiser held for dropped adapters.
    """

    kept: tuple[str, ...]
    dropped: tuple[str, ...]
    parameters: int
    parameters_left: int
    optimizer_bytes: int


@dataclass(frozen=True)
class SelectionStep:
    """One training step of the choice: ω of every adapter, and whether the choice is final."""

    step: int
    omega: Mapping[str, float]
    final: bool

    @property
    def active(self) -> int:
        """Adapters with ω ≠ 0."""
        return sum(value != 0 for value in self.omega.values())


class SelectionSchedule(MethodSchedule):
    """StoIHT over the warm-up, then the choice.

    Args:
        model: the gated model; kept: K; warmup: T in optimiser steps; optimizer: the run's, which holds the adapters.

    Attributes:
        history: ω during the warm-up; selection: what was chosen, once it is (None for a model loaded after that).

    Raises:
        InputError: no optimiser, or one of another model; MethodError: ranks are to double and a gate fixes them.
    """

    def __init__(
        self, model: GatedModel, config: WeightLoRA, kept: int, warmup: int, optimizer: torch.optim.Optimizer | None
    ) -> None:
        self.model, self.config, self.kept, self.warmup = model, config, kept, warmup
        self.history: list[SelectionStep] = []
        self.selection: Selection | None = None
        if config.plus:
            _refuse_rank_gates(model.graph_module)
        self.optimizer = _checked_optimizer(model.graph_module, optimizer)
        if self._is_final():
            retire(model.graph_module, self._dropped(), self.optimizer)

    def step(self) -> SelectionStep:
        """Move ω during the warm-up, and choose at its end; call once per optimiser step."""
        weights = weights_by_name(self.model.graph_module)
        if not self._is_final():
            threshold_step(list(weights.values()), self.kept, self.config.omega_rate)
            self.history.append(self._row())
            if self.history[-1].step >= self.warmup:
                self._choose()
        return self._row()

    def figures(self) -> Mapping[str, float]:
        """How many adapters are active, and whether the choice is final."""
        row = self._row()
        return {"adapters_active": float(row.active), "adapters_final": float(row.final)} if row.step else {}

    def _row(self) -> SelectionStep:
        weights = weights_by_name(self.model.graph_module)
        first = next(iter(weights.values()))
        omega = {name: float(weight.omega) for name, weight in weights.items()}
        return SelectionStep(int(first.updates), omega, bool(first.frozen))

    def _is_final(self) -> bool:
        return all(bool(weight.frozen) for weight in weights_by_name(self.model.graph_module).values())

    def _dropped(self) -> tuple[str, ...]:
        weights = weights_by_name(self.model.graph_module)
        return tuple(name for name, weight in weights.items() if float(weight.omega) == 0)

    def _choose(self) -> None:
        graph = self.model.graph_module
        before = _trained(graph, tuple(weights_by_name(graph)))
        kept = freeze_choice(graph, self.kept)
        dropped = self._dropped()
        freed = retire(graph, dropped, self.optimizer)
        self._restart(kept)
        left = _trained(self.model.graph_module, kept)
        self.selection = Selection(kept, dropped, before, left, freed)

    def _restart(self, kept: tuple[str, ...]) -> None:
        """Give kept adapters fresh factors, in the model and in the optimiser."""
        old = adapter_parameters(self.model.graph_module, kept)
        chain = Chain(self.model.graph_module).then(StartSitesAfresh(kept, 2 if self.config.plus else 1))
        # The graph that everyone holds stays the one that runs: only its parameters, and what nodes know, change.
        self.model.graph_module = chain.graph
        replace_parameters(self.optimizer, old, adapter_parameters(chain.graph, kept))


def freeze_choice(graph_module: fx.GraphModule, kept: int) -> tuple[str, ...]:
    """Make the `kept` largest |ω| the choice; their names."""
    weights = weights_by_name(graph_module)
    names = tuple(weights)
    chosen = {names[i] for i in largest([abs(float(weight.omega)) for weight in weights.values()], kept)}
    for name, weight in weights.items():
        weight.freeze(keep=name in chosen)
    return tuple(name for name in names if name in chosen)


def adapter_parameters(graph_module: fx.GraphModule, names: Sequence[str]) -> list[nn.Parameter]:
    """A and B of the named adapters, once each, in graph order."""
    nodes = (node for site in find_sites(graph_module)[0] if site.name in names for node in (site.lora_a, site.lora_b))
    found = (get_tensor(graph_module, name) for name in dict.fromkeys(str(node.target) for node in nodes))
    return [tensor for tensor in found if isinstance(tensor, nn.Parameter)]


@torch.no_grad()
def retire(graph_module: fx.GraphModule, names: Sequence[str], optimizer: torch.optim.Optimizer) -> int:
    """Take dropped adapters out of training: B = 0, no gradients, no place in the optimiser; bytes of its state freed.

    B = 0 says the same as ω = 0 to whoever reads the adapter without its gates, as PEFT does.
    """
    gone = adapter_parameters(graph_module, names)
    for site in find_sites(graph_module)[0]:
        if site.name in names:
            get_tensor(graph_module, str(site.lora_b.target)).zero_()
    for parameter in gone:
        parameter.requires_grad_(False)
        parameter.grad = None
    identities = {id(parameter) for parameter in gone}
    for group in optimizer.param_groups:
        group["params"][:] = [parameter for parameter in group["params"] if id(parameter) not in identities]
    return sum(_bytes_of(optimizer.state.pop(parameter, {})) for parameter in gone)


def replace_parameters(
    optimizer: torch.optim.Optimizer, old: Sequence[nn.Parameter], new: Sequence[nn.Parameter]
) -> None:
    """Put new parameters in the places of old ones, without the state of those."""
    swap = {id(before): after for before, after in zip(old, new, strict=True)}
    for group in optimizer.param_groups:
        group["params"][:] = [swap.get(id(parameter), parameter) for parameter in group["params"]]
    for parameter in old:
        optimizer.state.pop(parameter, None)


def _bytes_of(state: Mapping[str, object]) -> int:
    return sum(value.numel() * value.element_size() for value in state.values() if isinstance(value, Tensor))


def _trained(graph_module: fx.GraphModule, names: Sequence[str]) -> int:
    return sum(parameter.numel() for parameter in adapter_parameters(graph_module, names))


def _checked_optimizer(graph_module: fx.GraphModule, optimizer: torch.optim.Optimizer | None) -> torch.optim.Optimizer:
    remedy = "schedule = gated.schedule(total_steps, optimizer), with the optimiser of gated's trainable parameters"
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise InputError(
            "weightlora takes dropped adapters out of the optimiser, so its schedule needs the optimiser.",
            given=f"optimizer={optimizer!r}" if optimizer is None else f"a {type(optimizer).__name__}",
            expected="a torch.optim.Optimizer",
            remedy=remedy,
        )
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if not any(
        id(parameter) in held for parameter in adapter_parameters(graph_module, tuple(weights_by_name(graph_module)))
    ):
        raise InputError(
            "The optimiser trains none of the model's adapters.",
            given=f"a {type(optimizer).__name__} of {len(held)} other parameters",
            expected="the optimiser that was made from this gated model's parameters",
            remedy=remedy,
        )
    return optimizer


def _refuse_rank_gates(graph_module: fx.GraphModule) -> None:
    gated = [site.name for site in find_sites(graph_module)[0] if site.gate is not None]
    if gated:
        raise MethodError(
            "weightlora+ doubles ranks, which gates on rank directions were made for.",
            given=f"rank gates on {gated[0]} and {len(gated) - 1} more",
            expected="weightlora+ without ccm",
            remedy='use method=["weightlora", "ccm"]',
        )
