"""Capture: any module → one ATen graph with dynamic batch and sequence that trains like the module it came from.

    nn.Module ─ structural copy ─▶ torch.export (non-strict, training mode) ─▶ plain torch.fx.GraphModule
                                                                               dropout as call_module
                                                                               named inputs, named outputs
                                                                               provenance on every node

Sound because the copy runs the module's own code: nothing of the model is rewritten by hand. The caller's model is
never touched; its tensors are copied, or shared where they are frozen and `share_frozen` asks for it.

Refused, with the module and a remedy: an example batch of one (export would fix it), control flow on data, buffers
written while running (batch statistics), a batch axis that does not stay dynamic.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from ...errors import CaptureError, InputError
from ...models.families import LAYER_DROP_CLASSES, LENGTH_GROUPS
from ...models.task_loss import LABEL_NAMES, base_model
from .agreement import differs_in_eval
from .capture_decoder import Arguments, decoder_arguments, with_linear_bias
from .normalize import normalize
from .signature import InputSpec, Signature, read_axes

_SMALLEST_EXAMPLE = 2


@dataclass(frozen=True)
class Captured:
    """A captured model: the graph (its `meta["signature"]` names inputs and outputs) and what to know about it."""

    graph_module: fx.GraphModule
    notes: tuple[str, ...]


def capture(model: nn.Module, example_inputs: Mapping[str, Tensor], *, share_frozen: bool = False) -> Captured:
    """Capture `model` as it answers `model(**example_inputs)`.

    Args:
        model: any module whose outputs are a tensor, a tuple, a mapping or a transformers ModelOutput.
        example_inputs: one batch of at least two examples, without labels.
        share_frozen: share storage with parameters that do not require a gradient instead of copying them.

    Raises:
        InputError: example inputs that are no tensors, empty, or hold fewer than two examples.
        CaptureError: the model cannot be exported; the text names the module and the remedy.
    """
    example = _checked_example(example_inputs)
    twin = _twin(model, share_frozen=share_frozen)
    arguments, problem = decoder_arguments(twin, example)
    notes = []
    try:
        exported, answer_type = _export(twin, example, arguments, training=True)
    except CaptureError as in_training:
        try:
            exported, answer_type = _export(twin, example, arguments, training=False)
        except CaptureError:
            raise in_training from in_training.__cause__
        notes.append(f"captured in eval mode, so dropout stays off in training: {in_training.problem}")
    graph_module = _unlifted(exported, tuple(example))
    if not notes:
        difference = differs_in_eval(_ByName(twin, tuple(example), arguments), graph_module, example)
        if difference is not None:
            exported, answer_type = _export(twin, example, arguments, training=False)
            graph_module = _unlifted(exported, tuple(example))
            notes.append(f"captured in eval mode: besides dropout, training changes what the model does ({difference})")
    if problem is not None:
        placed = with_linear_bias(graph_module, example)
        graph_module, problem = (graph_module, problem) if placed is None else (placed, None)
    origin = {"architecture": type(base_model(model)).__name__, "answer_type": answer_type}
    graph_module.meta["signature"] = replace(graph_module.meta["signature"], **origin)
    notes += _fixed_axes(graph_module, tuple(example))
    notes += [] if problem is None else [problem]
    return Captured(graph_module, tuple(notes))


class _Seen:
    """What tracing saw; an object of its own, since export undoes what a forward assigns to its module."""

    answer_type: type | None = None


class _ByName(nn.Module):
    """Calls the model by keyword and returns its tensors by name, so that the graph's outputs have names."""

    def __init__(self, model: nn.Module, names: tuple[str, ...], arguments: Arguments) -> None:
        super().__init__()
        self.model = model
        self.names = names
        self.arguments = arguments
        self.seen = _Seen()

    def forward(self, *tensors: Tensor) -> dict[str, Tensor]:
        inputs = dict(zip(self.names, tensors, strict=True))
        _tie_axes(inputs)
        answer = self.model(**self.arguments(inputs))
        self.seen.answer_type = type(answer) if isinstance(answer, Mapping) and is_dataclass(answer) else None
        return named_tensors(answer)


def named_tensors(outputs: Any) -> dict[str, Tensor]:
    """The tensors of a model's answer by name; a bare tensor is "logits", a tuple's are "output_0", "output_1", …"""
    if isinstance(outputs, Tensor):
        return {"logits": outputs}
    if isinstance(outputs, Mapping):
        return {str(k): v for k, v in outputs.items() if isinstance(v, Tensor)}
    if isinstance(outputs, (tuple, list)):
        return {f"output_{i}": v for i, v in enumerate(outputs) if isinstance(v, Tensor)}
    raise TypeError(f"the model returned {type(outputs).__name__}, which holds no tensors by name")


def _checked_example(example_inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    remedy = 'pass one tokenized batch, e.g. tokenizer(["a b c", "d e"], padding=True, return_tensors="pt")'
    if not isinstance(example_inputs, Mapping) or not example_inputs:
        raise InputError(
            "example_inputs must name the model's inputs.",
            given=type(example_inputs).__name__,
            expected="a mapping from input name to tensor",
            remedy=remedy,
        )
    example = {k: v for k, v in example_inputs.items() if k not in LABEL_NAMES}
    if not example:
        raise InputError(
            "example_inputs holds labels only.",
            given=", ".join(example_inputs),
            expected="the inputs of the model's forward",
            remedy=remedy,
        )
    for name, value in example.items():
        if not isinstance(value, Tensor) or value.dim() == 0:
            given = f"{name} of type {type(value).__name__}"
            raise InputError(f"{name} is no batch of examples.", given=given, expected="a tensor (B, …)", remedy=remedy)
        short = [axis for axis, size in enumerate(value.shape[:2]) if size < _SMALLEST_EXAMPLE]
        if short:
            what = "batch" if short[0] == 0 else "sequence"
            raise InputError(
                f"The example {what} of {name} has {value.shape[short[0]]} entries.",
                given=f"{name} of shape {tuple(value.shape)}",
                expected=f"two examples of two positions or more: a {what} of one becomes a constant of the graph",
                remedy=remedy,
            )
    return example


def _twin(model: nn.Module, *, share_frozen: bool) -> nn.Module:
    """A copy of the model's modules that the capture may switch to training mode and keep."""
    shared: dict[int, Any] = {}
    if share_frozen:
        for parameter in model.parameters():
            if not parameter.requires_grad:
                shared[id(parameter)] = nn.Parameter(parameter.data, requires_grad=False)
    try:
        twin = copy.deepcopy(model, shared)
    except (RuntimeError, TypeError) as error:
        raise CaptureError(
            f"{type(model).__name__} cannot be copied, and capture works on a copy.",
            given=str(error).splitlines()[0],
            remedy="detach cached activations from the module (only parameters and buffers may be tensors)",
        ) from error
    config = getattr(twin, "config", None)
    if config is not None and getattr(config, "use_cache", None) is not None:
        config.use_cache = False
    return twin


def _export(
    model: nn.Module, example: dict[str, Tensor], arguments: Arguments, *, training: bool
) -> tuple[ExportedProgram, type | None]:
    model.train(training)
    for module in model.modules():
        if type(module).__name__ in LAYER_DROP_CLASSES:
            module.training = False
    wrapper = _ByName(model, tuple(example), arguments)
    dynamic = tuple(dict.fromkeys(range(tensor.dim()), Dim.AUTO) for tensor in example.values())
    try:
        with torch.random.fork_rng(devices=[]):
            exported = torch.export.export(wrapper, tuple(example.values()), dynamic_shapes=(dynamic,), strict=False)
    except Exception as error:  # export raises whatever the model's code raises; all of it is reported
        raise _capture_error(model, error) from error
    written = list(exported.graph_signature.buffers_to_mutate.values())
    if written:
        raise CaptureError(
            f"{type(model).__name__} writes to {written[0].removeprefix('model.')} while it runs.",
            expected="a model whose forward only reads its buffers",
            remedy="replace batch statistics (BatchNorm) by LayerNorm, or freeze them with module.eval()",
        )
    return exported, wrapper.seen.answer_type


def _tie_axes(inputs: dict[str, Tensor]) -> None:
    """Say that axes with one meaning have one length; export would otherwise give each input lengths of its own."""
    first = next(iter(inputs.values()))
    for tensor in inputs.values():
        torch._check(tensor.shape[0] == first.shape[0])  # type: ignore[no-untyped-call]  # torch leaves it untyped
    for group in LENGTH_GROUPS:
        present = [inputs[name] for name in group if name in inputs and inputs[name].dim() > 1]
        for tensor in present[1:]:
            torch._check(tensor.shape[1] == present[0].shape[1])  # type: ignore[no-untyped-call]  # torch leaves it untyped


def _capture_error(model: nn.Module, error: Exception) -> CaptureError:
    frames = []
    trace = error.__traceback__
    while trace is not None:
        owner = trace.tb_frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and not isinstance(owner, _ByName):
            frames.append(owner)
        trace = trace.tb_next
    culprit = frames[-1] if frames else model
    path = next((name for name, module in model.named_modules() if module is culprit), "")
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return CaptureError(
        f"{type(model).__name__} cannot be captured as one graph: {type(culprit).__name__}"
        f"{f' at {path}' if path else ''} failed while it was traced.",
        given=f"{type(error).__name__}: {text}",
        expected="a forward without control flow on tensor values, and example inputs that the model runs on",
        remedy="run model(**example_inputs) once; if that works, replace the data-dependent branch in the module named "
        "above, or capture a part of the model that has none",
    )


def _unlifted(exported: ExportedProgram, names: tuple[str, ...]) -> fx.GraphModule:
    """The exported program as a plain GraphModule whose tensors keep the names they have in the model."""
    source = exported.module(check_guards=False)
    output_spec = exported.call_spec.out_spec
    if output_spec is None:
        raise CaptureError("The exported program does not say what it returns.")
    output_names = tuple(output_spec.context)
    bounds = {
        str(symbol): (
            int(extent.lower) if extent.lower.is_Integer else 0,
            int(extent.upper) if extent.upper.is_Integer else None,
        )
        for symbol, extent in exported.range_constraints.items()
    }
    graph_module = normalize(source, names, output_names)
    inputs = []
    names_of_axes: dict[str, str] = {}
    for node in graph_module.graph.find_nodes(op="placeholder"):
        value = node.meta["val"]
        inputs.append(InputSpec(str(node.target), value.dtype, read_axes(value, bounds, names_of_axes)))
    graph_module.meta["signature"] = Signature(tuple(inputs), output_names)
    return graph_module


def _fixed_axes(graph_module: fx.GraphModule, names: tuple[str, ...]) -> list[str]:
    signature: Signature = graph_module.meta["signature"]
    if signature.inputs[0].axes[0].size is not None:
        raise CaptureError(
            f"The batch axis of {names[0]} became the constant {signature.inputs[0].axes[0].size}.",
            expected="a model that takes any batch size",
            remedy="look for .view/.reshape with a literal batch size, or shapes read with int(), in its forward",
        )
    notes = []
    for spec in signature.inputs:
        with suppress(IndexError):
            if spec.dtype == torch.int64 and spec.axes[1].size is not None:
                notes.append(f"{spec.name} takes only length {spec.axes[1].size}: the model fixes it")
    return notes
