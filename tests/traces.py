"""Traces that tests share: torch.export takes seconds for what most tests ask of the same few small models.

A trace is made once a process for models of transformers and PEFT that are built alike, and given the weights of each
one that asks. Batches and lengths of texts are symbols of a trace, so examples whose sizes compare alike, with each
other and with the numbers in the model's options (windows, buckets, heads), share one. Capture holds every graph
against its model before it answers, so a trace that does not fit is not used. Tests of capture itself trace anew.
"""

from __future__ import annotations

import copy
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Hashable, Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

Trace = Callable[..., tuple[ExportedProgram, type | None]]

_KNOWN_CODE = ("torch.", "transformers.", "peft.")
_PLAIN = (int, float, bool, str, bytes, type(None), torch.dtype, torch.device, type)


class SharedTraces:
    """Stands in for the trace of `gatefx.passes.graph.capture`.

    Attributes:
        trace: what it stands in for.
    """

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self._known: dict[Hashable, tuple[ExportedProgram, type | None]] = {}

    def __call__(
        self, model: nn.Module, example: dict[str, Tensor], arguments: Any, *, training: bool
    ) -> tuple[ExportedProgram, type | None]:
        if not all(type(module).__module__.startswith(_KNOWN_CODE) for module in model.modules()):
            return self.trace(model, example, arguments, training=training)
        built = _built(model)
        shapes = _shapes(example, sorted(set(_numbers(built[1]))))
        key = (built, shapes, _described(arguments), training, torch.get_default_dtype())
        if key not in self._known:
            self._known[key] = self.trace(model, example, arguments, training=training)
            return self._known[key]
        model.train(training)
        exported, answer_type = self._known[key]
        return _with_tensors_of(exported, model), answer_type


def _with_tensors_of(exported: ExportedProgram, model: nn.Module) -> ExportedProgram:
    own = copy.copy(exported)
    tensors = {f"model.{name}": tensor for name, tensor in _tensors(model)}
    own._state_dict = {name: tensors[name] for name in exported.state_dict}
    own._constants = {name: tensors.get(name, value) for name, value in exported.constants.items()}
    return own


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))


def _built(model: nn.Module) -> tuple[Hashable, Hashable]:
    """What a trace may depend on, besides the numbers in its tensors."""
    order: dict[int, int] = {}
    tensors = tuple(
        (name, tuple(tensor.shape), tensor.dtype, tensor.requires_grad, order.setdefault(id(tensor), len(order)))
        for name, tensor in _tensors(model)
    )
    modules = tuple((name, type(module), _attributes(module)) for name, module in model.named_modules())
    return tensors, modules


def _attributes(module: nn.Module) -> tuple[tuple[str, Hashable], ...]:
    own = {"_parameters", "_buffers", "_modules", "training"}
    return tuple((name, _described(value)) for name, value in sorted(vars(module).items()) if name not in own)


def _described(value: Any) -> Hashable:
    """A value by what it holds, a config by what it says, and any other object by its type."""
    if isinstance(value, _PLAIN):
        return type(value), value
    if isinstance(value, Mapping):
        return type(value), tuple((_described(key), _described(item)) for key, item in value.items())
    if isinstance(value, (list, tuple, set, frozenset)):
        items = tuple(map(_described, value))
        return type(value), items if isinstance(value, (list, tuple)) else frozenset(items)
    if isinstance(value, Tensor):
        return type(value), tuple(value.shape), value.dtype
    if callable(value) and getattr(value, "__qualname__", None):
        return value.__module__, value.__qualname__
    if type(value).__module__.startswith((*_KNOWN_CODE, "gatefx.")) and not isinstance(value, nn.Module):
        return type(value), tuple((name, _described(item)) for name, item in sorted(vars(value).items()))
    return type(value)


def _numbers(described: Hashable) -> Iterator[int]:
    """The integers in a description."""
    if isinstance(described, (tuple, frozenset)):
        yield from chain.from_iterable(map(_numbers, described))
    elif isinstance(described, int) and not isinstance(described, bool):
        yield described


def _shapes(example: Mapping[str, Tensor], numbers: list[int]) -> Hashable:
    """Shapes of images and sounds as they are; of texts (B, T) what is equal, and where T stands in `numbers`."""
    order: dict[int, int] = {}
    shapes = []
    for name, tensor in example.items():
        alike = tuple(order.setdefault(size, len(order)) for size in tensor.shape)
        text = tensor.dim() == 2 and not tensor.is_floating_point()  # (B, T)
        length = tensor.shape[-1]
        sizes = (bisect_left(numbers, length), bisect_right(numbers, length)) if text else tuple(tensor.shape)
        shapes.append((name, alike, sizes, tensor.dtype))
    return tuple(shapes)
