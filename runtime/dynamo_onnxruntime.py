"""`torch.compile(…, backend="gatefx", options={"lower": "onnxruntime"})`: what Dynamo traced, in ONNX Runtime.

The graph is lowered at its first call, not while Dynamo compiles: its own export must not run inside another, and a
refusal reaches the caller as it is instead of wrapped, or swallowed by `suppress_errors`.

One graph serves every size that Dynamo traced as varying. What a call passes is fed, buffers such as a budget's among
it. Weights are the session's: it packs them for its kernels, so each call compares them with those it has, by identity
and by the count that torch keeps of changes in place, and starts a new session where one differs. Changes through
`.data` are not counted; nothing can see them. Numbers that are written into the graph are compared too.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, fx

from ..errors import GatefxError, InputError
from .sessions.onnxruntime_start import start_in_memory

if TYPE_CHECKING:
    from ..passes.lower.onnx_dynamo import TracedModel


@dataclass(frozen=True)
class _Weight:
    """A weight as a session has it."""

    tensor: Tensor
    version: int

    @classmethod
    def of(cls, tensor: Tensor) -> _Weight:
        """As it is now."""
        return cls(tensor, tensor._version)

    def is_still(self, given: object) -> bool:
        """Whether a call passes it unchanged."""
        return given is self.tensor and self.tensor._version == self.version


@dataclass(frozen=True)
class _Running:
    """A session, and the calls that it answers."""

    model: TracedModel
    session: Any
    weights: tuple[tuple[int, _Weight], ...]  # place in the call, weight


class OnnxRuntimeCall:
    """The traced graph as a function of what its placeholders stand for."""

    def __init__(self, traced: fx.GraphModule, provider: str) -> None:
        self._traced = traced
        self._provider = provider
        self._running: _Running | None = None
        self._starting = threading.Lock()

    def __call__(self, *call: object) -> tuple[Tensor, ...]:
        """The graph's answers.

        Raises:
            GatefxError: a call that needs gradients, or is not on the CPU; CaptureError: a graph that has no ONNX form;
            ProviderError, MissingDependencyError: no such provider here.
        """
        _check_call(self._traced, call)
        running = self._running
        if running is None or not _serves(running, call):
            running = self._started(call)
        graph = running.model.graph
        fed = {name: _array(call[place]) for name, place in zip(running.model.inputs, graph.fed, strict=True)}
        own = iter(_run(running.session, fed))
        return tuple(next(own) if place is None else cast("Tensor", call[place]) for place in graph.answers)

    def _started(self, call: Sequence[object]) -> _Running:
        """A session for this call; one at a time, for calls may come from several threads."""
        with self._starting:
            running = self._running
            if running is not None and _serves(running, call):
                return running
            from ..passes.lower.onnx_dynamo import lower_traced

            same = running is not None and _has_numbers(running.model, call)
            model = running.model if running is not None and same else lower_traced(self._traced, call)
            places = [(name, model.graph.weights[name]) for name in model.weights]
            arrays = {name: _array(call[place]) for name, place in places}
            session = start_in_memory(model.model, arrays, provider=self._provider, threads=torch.get_num_threads())
            held = tuple((place, _Weight.of(cast("Tensor", call[place]))) for _, place in places)
            self._running = _Running(model, session, held)
            return self._running


def _serves(running: _Running, call: Sequence[object]) -> bool:
    unchanged = all(weight.is_still(call[place]) for place, weight in running.weights)
    return unchanged and _has_numbers(running.model, call)


def _has_numbers(model: TracedModel, call: Sequence[object]) -> bool:
    return all(_number(call[place]) == number for place, number in model.graph.numbers.items())


def _number(given: object) -> object:
    return given.item() if isinstance(given, Tensor) else given


def _check_call(traced: fx.GraphModule, call: Sequence[object]) -> None:
    tensors = {
        hole.name: given
        for hole, given in zip(traced.graph.find_nodes(op="placeholder"), call, strict=True)
        if isinstance(given, Tensor)
    }
    if torch.is_grad_enabled() and (learning := [name for name, given in tensors.items() if given.requires_grad]):
        raise GatefxError(
            "The call needs gradients, and ONNX Runtime computes none.",
            given=f"{len(learning)} tensors that require gradients, {learning[0]} among them",
            expected="a call for its answers alone",
            remedy='with torch.no_grad(): …; to train, compile with options={"lower": "inductor"}',
        )
    elsewhere = sorted({given.device.type for given in tensors.values()} - {"cpu"})
    if elsewhere:
        raise InputError(
            "Tensors go to ONNX Runtime from the CPU's memory, whatever its provider.",
            given=f"tensors on {', '.join(elsewhere)}",
            expected="model and inputs on the CPU",
            remedy='move both by .cpu(), and name a GPU by options={"lower": "onnxruntime", "provider": "cuda"}',
        )


def _array(given: object) -> np.ndarray:
    """The memory of a tensor, without a copy where it is contiguous."""
    tensor = cast("Tensor", given).detach()
    return tensor.contiguous().numpy()


def _run(session: Any, fed: dict[str, np.ndarray]) -> list[Tensor]:
    try:
        answers = session.run(None, fed)
    except Exception as error:
        # ONNX Runtime's errors have no common base but Exception.
        raise InputError(
            "ONNX Runtime could not run the graph on these inputs.",
            given=f"{type(error).__name__}: {error}",
            expected="; ".join(f"{given.name} {given.shape}" for given in session.get_inputs()),
        ) from error
    return [torch.from_numpy(answer) for answer in answers]
