"""prepare: the user's model → a trainable gated model, the first of the five public steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, fx, nn

from .config import AdapterConfig, Budgets
from .errors import InputError, MethodError, SiteError
from .models.configs.catalogue import Methods, kind_of, resolve_methods
from .models.families import HEAD_MODULES
from .models.gate_modules import GATE_MODULES
from .models.task_loss import CustomLoss, model_config, task_loss_of
from .passes.chain import Chain
from .passes.contract import Pass
from .passes.gated import GatedModel
from .passes.graph.capture import capture
from .passes.methods.budgets import budgets_by_method, with_one_adapter
from .passes.methods.catalogue import class_of
from .passes.methods.method import Method
from .passes.program import GraphProgram
from .passes.report import Report

LossFunction = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Tensor]


def prepare(
    model: nn.Module,
    method: Methods = "ccm",
    budget: Budgets | None = None,
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
        method: a name such as "ccm", a config such as `CCM(rank=16, pool="attention")`, or a list of several.
        budget: in the method's unit (ranks, tokens, sites): an int, a share in (0, 1], or a string such as "40%";
            for several methods a dict by name; None takes the method's default.
        example_inputs: one batch of at least two examples, by input name, without labels.
        rank: overrides the config's rank (for adapters that gatefx attaches).
        loss: function of (outputs, labels) for models that bring no loss of their own.
        share_frozen: share storage with the model's frozen parameters instead of copying them; then do not merge
            adapters into the original while the gated model is in use.
        verify: check graph legality after every pass.

    Raises:
        GatefxError: the model cannot be captured, has nothing to gate, or the arguments make no sense.
    """
    return build_gated(
        model, with_one_adapter(resolve_methods(method), rank), budget, example_inputs=example_inputs, loss=loss,
        share_frozen=share_frozen, verify=verify,
    )  # fmt: skip


def build_gated(  # noqa: PLR0913  # one door behind prepare, optimize and from_pretrained
    model: nn.Module,
    configs: Sequence[AdapterConfig],
    budget: Budgets | None,
    *,
    example_inputs: Mapping[str, Tensor],
    attach: bool = True,
    adapters: Pass | None = None,
    resolved: Mapping[str, float | None] | None = None,
    loss: LossFunction | None = None,
    share_frozen: bool = False,
    verify: bool = False,
) -> GatedModel:
    """Capture a model and gate its adapters by several methods.

    Args:
        attach: give adapters to a model without any; False refuses it.
        adapters: the pass that attaches them, instead of the methods' own.
        resolved: budgets in the methods' units by name, which need no check (of a saved model), instead of `budget`.
        others: as `prepare`.

    Raises:
        GatefxError: as `prepare`.
    """
    check_model(model)
    budgets = budgets_by_method(configs, budget)
    for config in configs:
        class_of(config).check_budget(config, budgets[kind_of(config)])
    captured = capture(model, example_inputs, share_frozen=share_frozen)
    blank = [class_of(config)(config, None) for config in configs]
    chain = Chain(captured.graph_module, verify)
    if not all(method.has_adapters(chain.graph) for method in blank):
        _refuse_sleeping_adapters(model)
        if attach:
            chain = chain.then(adapters if adapters is not None else _own_adapters(blank))
    methods = []
    for config in configs:
        implementation, name = class_of(config), kind_of(config)
        if resolved is not None:
            methods.append(implementation(config, resolved[name]))
        else:
            methods.append(implementation(config, implementation.resolve_budget(config, budgets[name], chain.graph)))
    for method in methods:
        chain = chain.then(*method.gates())
    trained = frozenset().union(*(method.adapter_tensors(chain.graph) for method in methods))
    set_trainable(chain.graph, configs[0], trained)
    return GatedModel(
        chain.graph,
        methods=methods,
        loss=CustomLoss(loss) if loss is not None else task_loss_of(model),
        model_config=model_config(model),
        report=Report(chain.reports, captured.notes),
    )


def _own_adapters(methods: Sequence[Method[Any]]) -> Pass:
    """The pass that attaches the adapter that all methods gate.

    Raises:
        MethodError: one gates another kind of adapter than the others.
    """
    passes = {method.name: method.adapters() for method in methods}
    if len({item.name for item in passes.values()}) > 1:
        kinds = {name: item.name.removeprefix("Attach") for name, item in passes.items()}
        raise MethodError(
            "Methods on one model gate one kind of adapter.",
            given=", ".join(f"{name} on {kind}" for name, kind in kinds.items()),
            expected="LoRA for all of them",
            remedy='pass gatefx.methods.GateRA(update="lora") instead of "gatera"',
        )
    return next(iter(passes.values()))


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


def set_trainable(graph_module: fx.GraphModule, config: AdapterConfig, adapters: frozenset[str]) -> None:
    """Adapters, gates and the task's head train; everything else is frozen, except what the caller had trainable
    beside adapters of their own (PEFT's modules_to_save, trained biases)."""
    has_peft = any(".modules_to_save." in name or ".base_layer." in name for name, _ in graph_module.named_parameters())
    heads = HEAD_MODULES if config.train_modules is None else config.train_modules
    gates = gate_parameters(graph_module)
    for name, parameter in graph_module.named_parameters():
        parts = name.split(".")
        chosen = name in adapters or name in gates or "modules_to_save" in parts
        if has_peft:
            chosen = chosen or (parameter.requires_grad and "original_module" not in parts)
        else:
            chosen = chosen or any(part in heads for part in parts)
        parameter.requires_grad_(chosen)


def gate_parameters(graph_module: fx.GraphModule) -> frozenset[str]:
    """Names of the parameters of the graph's gates."""
    return frozenset(
        f"{path}.{name}"
        for path, module in graph_module.named_modules()
        if isinstance(module, GATE_MODULES)
        for name, _ in module.named_parameters()
    )
