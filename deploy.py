"""optimize: a trained gated model, or a PEFT model → a deployed model that does only the work its gates ask for."""

from __future__ import annotations

import copy
import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .config import AdapterConfig, Budgets
from .errors import InputError, MethodError, SiteError, UntrainedGateError
from .fitting import fit_untrained, spend_flops
from .models.configs.catalogue import Methods, kind_of, resolve_method, resolve_methods
from .models.task_loss import LABEL_NAMES
from .passes.cost import Workload
from .passes.deployed import DeployedModel
from .passes.deploying import deploy
from .passes.gated import GatedModel
from .passes.methods.budgets import budgets_by_method, with_one_adapter, without_flops
from .passes.methods.method import DeployOptions, Method
from .preparing import build_gated, check_model
from .runtime.native.torch_kernels import use_torch_kernels
from .saving import load_gates

_NO_TOKENS = 1
_UNKNOWN_WORKLOAD = Workload(8, 128)

Batches = Iterable[Mapping[str, Tensor]]


def optimize(  # noqa: PLR0913  # the front door: each is a documented option
    model: nn.Module,
    method: Methods | None = None,
    budget: Budgets | None = None,
    *,
    data: Batches | None = None,
    gates: str | Path | None = None,
    workload: tuple[int, int] | None = None,
    engine: str = "onnxruntime",
    fold: bool | None = None,
    freeze_static: bool = False,
    forms: str | None = None,
    distill_steps: int = 300,
    progress: bool | None = None,
    verify: bool = False,
) -> DeployedModel:
    """Compile a model's adapters and gates for serving. The model given is not changed.

    Where the native kernels are built (`gatefx build-native`), gatefx's torch operators run by them from now on.

    Args:
        model: what `prepare` returned, trained; or a PEFT model with LoRA, whose gates are then fitted on `data`.
        method: a name, a config, or a list of several; None takes the gated model's own.
        budget: in the method's unit (ranks, tokens, sites), for several methods a dict by name; None takes the gated
            model's own. For masklora also `gatefx.methods.Flops(0.6)`: its cuts are chosen on `data` for that cost.
        data: unlabelled batches (labels are ignored): they calibrate the gates, and fit those that were never trained.
        gates: folder that `gated.save_pretrained` wrote: its gates act in a PEFT model, nothing is fitted.
        workload: (batch, tokens) to price forms for; None takes the data's median.
        engine: whose measured constants the cost model uses: "onnxruntime" or "torch".
        fold: None folds adapters whose gate turned static; True every adapter, refused where a gate still decides;
            False none.
        freeze_static: freeze gates that never varied on `data` (approximate, reported).
        forms: "gathered" or "masked" instead of the cost model's choice.
        distill_steps: optimiser steps when gates must be fitted.
        progress: show progress bars; None shows them on a terminal.
        verify: check every pass's claims and the graph's legality.

    Raises:
        GatefxError: no adapters, untrained gates without data, a budget or option that makes no sense.
    """
    _check_choices(engine, forms)
    _check_counts(workload, distill_steps)
    batches = _checked_batches(data)
    use_torch_kernels()
    gated = _gated(model, method, without_flops(budget), batches, gates)
    spend_flops(gated, budget, batches, progress=progress)
    options = DeployOptions(
        workload=_workload(workload, batches), engine=engine, fold=fold, freeze_static=freeze_static, forms=forms,
        verify=verify, show=progress,
    )  # fmt: skip
    fit_untrained(gated, batches, steps=distill_steps, progress=progress)
    return deploy(gated, batches, options)


def _check_choices(engine: str, forms: str | None) -> None:
    for name, value, allowed in (
        ("engine", engine, ("onnxruntime", "torch")),
        ("forms", forms, (None, "gathered", "masked")),
    ):
        if value not in allowed:
            raise MethodError(f"There is no {name} {value!r}.", given=f"{name}={value!r}", expected=str(allowed))


def _check_counts(workload: object, distill_steps: object) -> None:
    pair = workload if isinstance(workload, (tuple, list)) else ()
    if workload is not None and not (len(pair) == 2 and all(_is_count(size) for size in pair)):  # noqa: PLR2004
        raise InputError("workload is (batch, tokens).", given=repr(workload), expected="two positive integers")
    if not _is_count(distill_steps):
        raise InputError("distill_steps counts steps.", given=repr(distill_steps), expected="a positive integer")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _checked_batches(data: Batches | None) -> list[dict[str, Tensor]] | None:
    """The batches as lists of tensors by name, labels dropped.

    Raises:
        InputError: no batch, or a batch that is no mapping of tensors.
    """
    if data is None:
        return None
    expected = "an iterable of mappings from input name to tensor, e.g. a DataLoader"
    if isinstance(data, (Mapping, str)) or not isinstance(data, Iterable):
        raise InputError("data must be a sequence of batches.", given=type(data).__name__, expected=expected)
    batches = []
    for batch in data:
        if not isinstance(batch, Mapping):
            raise InputError("A batch of data is no mapping.", given=type(batch).__name__, expected=expected)
        inputs = {name: value for name, value in batch.items() if name not in LABEL_NAMES}
        odd = [f"{name}: {type(value).__name__}" for name, value in inputs.items() if not isinstance(value, Tensor)]
        if odd or not inputs:
            raise InputError(
                "A batch of data holds something else than tensors.", given=", ".join(odd) or "{}", expected=expected
            )
        batches.append(inputs)
    if not batches:
        raise InputError("data holds no batch.", given="an empty iterable", expected=expected)
    return batches


def _gated(
    model: nn.Module,
    method: Methods | None,
    budget: Budgets | None,
    batches: Sequence[Mapping[str, Tensor]] | None,
    gates: str | Path | None,
) -> GatedModel:
    """A gated model of our own to work on: a copy of the one given, or the user's model with gates inserted."""
    if isinstance(model, DeployedModel):
        raise InputError("The model is deployed already.", given="DeployedModel", expected="a gated or a PEFT model")
    if isinstance(model, GatedModel):
        if gates is not None:
            raise InputError(
                "The model has its gates already.",
                given=f"a gated model and gates={str(gates)!r}",
                expected="gates= with a PEFT model only",
                remedy="read a gated model with gatefx.from_pretrained(base, folder, example_inputs=batch)",
            )
        gated = _detached(model)
        gated.methods = _deploying(gated, method, budget)
        return gated
    configs = with_one_adapter(resolve_methods("ccm" if method is None else method), None)
    check_model(model)
    batches = _to_fit_on(model, batches)
    gated = build_gated(model, configs, budget, example_inputs=batches[0], attach=False)
    if gates is not None:
        load_gates(gated, gates)
    return gated


def _to_fit_on(model: nn.Module, batches: Sequence[Mapping[str, Tensor]] | None) -> Sequence[Mapping[str, Tensor]]:
    """The batches to fit the gates of a model without gates on.

    Raises:
        SiteError: there is nothing to gate; UntrainedGateError: there are no batches.
    """
    if batches is not None:
        return batches
    if not any("lora_" in name or "hira_" in name for name, _ in model.named_parameters()):
        raise SiteError(
            "The model has no adapter to optimize.",
            given=f"{type(model).__name__} without LoRA or HiRA",
            expected="a model that gatefx.prepare returned and you trained, or a PEFT model",
            remedy='call gatefx.prepare(model, method="ccm", budget=6, rank=16, example_inputs=batch), then train',
        )
    raise UntrainedGateError(
        "The model's gates were never trained, and there is no data to fit them on.",
        given=f"{type(model).__name__} without gates, data=None",
        expected="unlabelled batches of real inputs",
        remedy="pass data=[batch, …], or train with gatefx.prepare first",
    )


def _deploying(model: GatedModel, method: Methods | None, budget: Budgets | None) -> dict[str, Method[Any]]:
    """The model's methods, with the budgets and the options to deploy with.

    Raises:
        MethodError: methods or options that the model was not trained with; BudgetError: a budget out of range.
    """
    trained = {name: item.config for name, item in model.methods.items()}
    configs = dict(trained)
    if method is not None:
        several = isinstance(method, Sequence) and not isinstance(method, str)
        for item in method if several else [method]:  # type: ignore[union-attr]  # several says that it is a sequence
            config = resolve_method(item)
            if kind_of(config) not in trained:
                raise MethodError(
                    "The model was prepared for another method.", given=kind_of(config), expected=", ".join(trained)
                )
            if config is item:
                configs[kind_of(config)] = _redeployed(trained[kind_of(config)], config)
    given = budgets_by_method(list(trained.values()), budget)
    chosen: dict[str, Method[Any]] = {}
    for name, config in configs.items():
        value, kind = given[name], type(model.methods[name])
        resolved = kind.resolve_budget(config, value, model.graph_module) if value is not None else None
        chosen[name] = kind(config, model.methods[name].budget if value is None else resolved)
    return chosen


def _redeployed(trained: AdapterConfig, config: AdapterConfig) -> AdapterConfig:
    """The trained config in which a given one may change what only deployment reads.

    Raises:
        MethodError: a config that the model was not trained with.
    """
    kept = {field: getattr(trained, field) for field in trained.deploy_fields}
    if dataclasses.replace(config, **kept) != trained:
        fields = [f.name for f in dataclasses.fields(trained) if f.name not in trained.deploy_fields]
        names = [name for name in fields if getattr(config, name, None) != getattr(trained, name)]
        raise MethodError(
            "The model was trained with other options.",
            given=", ".join(f"{name}={getattr(config, name, None)!r}" for name in names),
            expected=", ".join(f"{name}={getattr(trained, name)!r}" for name in names),
            remedy=f"leave method out, or change only {', '.join(trained.deploy_fields) or 'the budget'}",
        )
    return config


def _detached(model: GatedModel) -> GatedModel:
    """A copy that shares frozen storage and owns what may go on training.

    Its parameters are objects of their own: casting or moving the copy replaces their storage, not the model's.
    """
    shared: dict[int, object] = {
        id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters() if not p.requires_grad
    }
    return copy.deepcopy(model, shared)


def _workload(workload: tuple[int, int] | None, batches: Sequence[Mapping[str, Tensor]] | None) -> Workload:
    if workload is not None:
        return Workload(*workload)
    if batches is None:
        return _UNKNOWN_WORKLOAD
    shapes = [next(iter(batch.values())).shape for batch in batches]
    tokens = [shape[1] if len(shape) > 1 else _NO_TOKENS for shape in shapes]
    return Workload(int(statistics.median(shape[0] for shape in shapes)), int(statistics.median(tokens)))
