"""A trainable model whose adapters are gated by one method or several."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, fx

from ..config import AdapterConfig
from ..errors import MethodError, SiteError
from ..models.task_loss import TaskLoss
from .gated_files import save_gated
from .methods.method import Method, MethodSchedule
from .methods.site_choice import select_sites
from .program import Answer, GraphProgram
from .report import Report


class GatedModel(GraphProgram):
    """Call it like the model it came from.

    In training mode the `loss` it returns is the task's plus the gates'; both parts stand beside it as `task_loss`
    and `gate_loss`. In eval mode `loss` is the task's alone.

    Attributes:
        methods: name → the method, in the order in which they act.
    """

    def __init__(
        self,
        graph_module: fx.GraphModule,
        *,
        methods: Sequence[Method[Any]],
        loss: TaskLoss,
        model_config: Any,
        report: Report,
    ) -> None:
        super().__init__(graph_module, loss=loss, model_config=model_config, report=report)
        self.methods = {method.name: method for method in methods}

    @property
    def method(self) -> AdapterConfig:
        """The options of the model's only method.

        Raises:
            MethodError: the model has several; see `methods`.
        """
        config: AdapterConfig = self._only().config
        return config

    @property
    def budget(self) -> float | dict[str, float | None] | None:
        """The budget of the model's only method, or those of several by name."""
        budgets = {name: method.budget for name, method in self.methods.items()}
        return next(iter(budgets.values())) if len(budgets) == 1 else budgets

    def gate_loss(self) -> Tensor:
        """The gates' terms of the objective on the last batch, for loops that compute the task's loss themselves.

        Raises:
            UntrainedGateError: the model was not called yet.
        """
        return self._gate_loss({})

    def schedule(self, total_steps: int, optimizer: torch.optim.Optimizer | None = None) -> MethodSchedule:
        """What drives the gates over `total_steps`; call its step() after every step of the optimiser.

        Args:
            total_steps: optimiser steps of the whole run.
            optimizer: yours, for methods that take parameters out of training (weightlora); others ignore it.
        """
        parts = {name: method.schedule(self, total_steps, optimizer) for name, method in self.methods.items()}
        return next(iter(parts.values())) if len(parts) == 1 else JointSchedule(parts)

    def answer(self, inputs: Mapping[str, object]) -> Answer:
        """Run the graph, and the task's loss where labels are among the inputs; see `GraphProgram.answer`."""
        if self.training:
            tensors = self.arrange(inputs)
            for method in self.methods.values():
                method.before(self, tensors)
        return super().answer(inputs)

    def save_pretrained(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write adapter (PEFT's format) and gates to `folder`; `gatefx.from_pretrained` reads them back exactly.

        Raises:
            ArtifactError: the folder exists and overwrite is False.
        """
        return save_gated(self, folder, overwrite=overwrite)

    def select_sites(self, rule: str, share: float, *, data: Iterable[Mapping[str, Tensor]]) -> tuple[str, ...]:
        """Paths of the sites that matter most by a trained run, fit to be the next run's `target_modules`.

        Args:
            rule: "low_sparsity" (few tokens skip the update), "high_sparsity" or "large_ratio"; share: of the sites,
                in (0, 1]; data: batches to measure on.

        Raises:
            MethodError: the model was not prepared with tspeft, or an unknown rule; InputError: no share, or no batch.
        """
        return select_sites(self, rule, share, data=data)

    def merge_and_unload(self) -> NoReturn:
        """PEFT's way to merge adapters, which gates rule out.

        Raises:
            SiteError: always, with what to call instead.
        """
        raise SiteError(
            "A gated adapter cannot be merged: its gate decides per input.",
            given=f"gates of {', '.join(self.methods)}",
            expected="optimize, which merges the adapters whose gate turns out constant",
            remedy='call gatefx.optimize(gated, data=…); optimize(gated, budget="100%", fold=True) drops the gates',
        )

    def _only(self) -> Method[Any]:
        if len(self.methods) > 1:
            raise MethodError(
                "The model has several methods.", given=", ".join(self.methods), expected="model.methods[name].config"
            )
        return next(iter(self.methods.values()))

    def _gate_loss(self, outputs: Mapping[str, Tensor]) -> Tensor:
        terms = [method.loss(self, outputs) for method in self.methods.values()]
        present = [term for term in terms if term is not None]
        if not present:
            return torch.zeros((), device=self.device)
        return torch.stack(present).sum()

    def _losses(self, outputs: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> dict[str, Tensor]:
        task = self.loss(outputs, labels)
        if not self.training:
            return {"loss": task}
        gates = self._gate_loss(outputs)
        return {"loss": task + gates, "task_loss": task.detach(), "gate_loss": gates.detach()}


class JointSchedule(MethodSchedule):
    """The schedules of several methods, stepped together.

    Attributes:
        parts: name → the method's own schedule.
    """

    def __init__(self, parts: Mapping[str, MethodSchedule]) -> None:
        self.parts = dict(parts)

    def step(self) -> Mapping[str, object]:
        """Step every method; name → its diagnostics."""
        return {name: part.step() for name, part in self.parts.items()}

    def figures(self) -> Mapping[str, float]:
        """Every method's figures, under "method/figure"."""
        return {f"{name}/{key}": value for name, part in self.parts.items() for key, value in part.figures().items()}
