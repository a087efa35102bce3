"""prepare: the user's model → a trainable gated model, the first of the five public steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from torch import Tensor, fx, nn

from .config import Budget, resolve_budget
from .errors import BudgetError, InputError, SiteError
from .models.configs.catalogue import resolve_method
from .models.configs.ccm import CCM
from .models.families import HEAD_MODULES
from .models.task_loss import CustomLoss, model_config, task_loss_of
from .passes.find.adapters import find_sites
from .passes.gate.lora import AttachLora
from .passes.gate.rank_router import InsertRankRouter
from .passes.graph.capture import capture
from .passes.methods.ccm import GatedModel
from .passes.pipeline import Pipeline
from .passes.program import GraphProgram
from .passes.report import Report

LossFunction = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Tensor]


def prepare(
    model: nn.Module,
    method: str | CCM = "ccm",
    budget: Budget = 6,
    *,
    example_inputs: Mapping[str, Tensor],
    rank: int | None = None,
    loss: LossFunction | None = None,
    share_frozen: bool = False,
    verify: bool = False,
) -> GatedModel:
    """Capture `model` and gate its adapters; a model without adapters gets LoRA on the method's target modules.

    Args:
        model: a transformers model, a PEFT model with LoRA, or any module that exports. It is not changed.
        method: "ccm", or a config such as `CCM(rank=16, pool="attention")`.
        budget: mean ranks per example and site: an int, a share in (0, 1], or a string such as "40%".
        example_inputs: one batch of at least two examples, by input name, without labels.
        rank: overrides the config's rank (for adapters that gatefx attaches).
        loss: function of (outputs, labels) for models that bring no loss of their own.
        share_frozen: share storage with the model's frozen parameters instead of copying them; then do not merge
            adapters into the original while the gated model is in use.
        verify: check graph legality after every pass.

    Raises:
        GatefxError: the model cannot be captured, has nothing to gate, or the arguments make no sense.
    """
    config = resolve_method(method)
    config = config if rank is None else dataclasses.replace(config, rank=rank)
    return build_gated(
        model, config, budget, example_inputs=example_inputs, lora=lora_for(config), loss=loss,
        share_frozen=share_frozen, verify=verify,
    )  # fmt: skip


def lora_for(config: CCM) -> AttachLora:
    """The pass that attaches the adapters a config describes."""
    return AttachLora(
        config.rank,
        config.scale_alpha,
        config.lora_dropout,
        config.target_modules,
        exclude=config.exclude_modules,
        layers=config.layers_to_transform,
        whole=config.train_modules or (),
    )


def build_gated(
    model: nn.Module,
    config: CCM,
    budget: Budget,
    *,
    example_inputs: Mapping[str, Tensor],
    lora: AttachLora | None,
    loss: LossFunction | None = None,
    share_frozen: bool = False,
    verify: bool = False,
) -> GatedModel:
    """Capture a model and gate its adapters; `lora` attaches some where there are none, None refuses such a model.

    Raises:
        GatefxError: as `prepare`.
    """
    check_model(model)
    captured = capture(model, example_inputs, share_frozen=share_frozen)
    sites, misses = find_sites(captured.graph_module)
    has_adapters = bool(sites)
    if misses and not sites:
        largest_rank(captured.graph_module)  # raises: new adapters beside the user's own would be another model
    if not sites:
        _refuse_sleeping_adapters(model)
    if not has_adapters and lora is not None:
        resolve_budget(budget, limit=max([lora.rank, *(rank for _, rank, _ in lora.overrides)]))
    attach = () if has_adapters or lora is None else (lora,)
    attached = Pipeline(attach)(captured.graph_module, verify=verify)
    ranks = resolve_sites_budget(budget, attached.graph_module)
    gated = InsertRankRouter(config, ranks)(attached.graph_module, verify=verify)
    set_trainable(gated.graph_module, config)
    return GatedModel(
        gated.graph_module,
        method=config,
        budget=ranks,
        loss=CustomLoss(loss) if loss is not None else task_loss_of(model),
        model_config=model_config(model),
        report=Report((*attached.reports, *gated.reports), captured.notes),
    )


def check_model(model: object) -> None:
    """Refuse what is no model, or is gatefx's already.

    Raises:
        InputError: with what was expected.
    """
    if isinstance(model, GraphProgram):
        raise InputError(
            "The model is gatefx's already.",
            given=type(model).__name__,
            expected="the model you started from",
            remedy="train the gated model you have, or pass it to gatefx.optimize",
        )
    if not isinstance(model, nn.Module):
        raise InputError("There is no model to capture.", given=type(model).__name__, expected="a torch.nn.Module")


def largest_rank(graph_module: fx.GraphModule) -> int:
    """The largest rank among a graph's adapter sites.

    Raises:
        SiteError: there are no sites, with the near misses.
    """
    sites, misses = find_sites(graph_module)
    if sites:
        return max(site.rank for site in sites)
    raise SiteError(
        "The model has no adapter that a gate could act on.",
        given="; ".join(f"{m.where}: {m.reason}" for m in misses) or "no LoRA branch in the captured graph",
        expected="LoRA on linear layers",
        remedy='call gatefx.prepare(model, method="ccm", budget=6, rank=16, example_inputs=batch), '
        "or name other target_modules",
    )


def resolve_sites_budget(budget: Budget, graph_module: fx.GraphModule) -> float:
    """The budget in ranks, out of the largest rank. Where ranks differ, a mean over the sites cannot be any number.

    Raises:
        SiteError: no sites; BudgetError: no budget, or one above the mean rank of the sites that does not keep all.
    """
    limit = largest_rank(graph_module)
    ranks = resolve_budget(budget, limit=limit)
    sites, _ = find_sites(graph_module)
    mean = sum(site.rank for site in sites) / len(sites)
    if mean < ranks < limit:
        raise BudgetError(
            f"The budget asks for {ranks:g} ranks on average where the sites have {mean:g} on average.",
            given=f"budget={budget!r}, sites of rank {min(site.rank for site in sites)} to {limit}",
            expected=f"at most {mean:g} ranks, or 100% to keep all",
            remedy="pass a smaller budget: it is the mean over sites of the ranks an example gets",
        )
    return ranks


def _refuse_sleeping_adapters(model: nn.Module) -> None:
    """A PEFT model whose adapters are merged or disabled has none in its graph; attaching others is another model."""
    named = [name for name, _ in model.named_parameters() if ".lora_A." in name]
    if named:
        raise SiteError(
            "The model's adapters take no part in its forward: they are merged or disabled.",
            given=f"{len(named)} adapters, such as {named[0]}",
            expected="active, unmerged adapters",
            remedy="call model.unmerge_adapter() or model.base_model.enable_adapter_layers() first",
        )


def set_trainable(graph_module: fx.GraphModule, config: CCM) -> None:
    """Adapters, routers and the task's head train; everything else is frozen, except what the caller had trainable
    beside adapters of their own (PEFT's modules_to_save, trained biases)."""
    sites, _ = find_sites(graph_module)
    adapters = {str(node.target) for site in sites for node in (site.lora_a, site.lora_b)}
    has_peft = any(".modules_to_save." in name or ".base_layer." in name for name, _ in graph_module.named_parameters())
    heads = HEAD_MODULES if config.train_modules is None else config.train_modules
    for name, parameter in graph_module.named_parameters():
        parts = name.split(".")
        chosen = name in adapters or "rank_router" in parts[0] or "modules_to_save" in parts
        if has_peft:
            chosen = chosen or (parameter.requires_grad and "original_module" not in parts)
        else:
            chosen = chosen or any(part in heads for part in parts)
        parameter.requires_grad_(chosen)
