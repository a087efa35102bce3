"""What a door has to know of a model to take a request for it: names, types, budgets, the longest text.

Read once from the opened artifact; plain data that goes to every process, so that a door needs no engine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import ArtifactError, InputError
from ..artifact import Artifact
from ..manifest import MODEL, ONNXRUNTIME
from ..sessions.budget import BudgetTable, by_method
from ..sessions.inputs import feed
from ..sessions.onnxruntime import OnnxSession
from ..sessions.protocol import TensorSpec
from .batching import MASK, Request
from .options import ServeOptions

_CONFIG = "config.json"
_IDS = "input_ids"
_PROBE_LENGTH = 8
_POSITIONS = ("max_position_embeddings", "n_positions")
_SERVED = (MODEL, ONNXRUNTIME)


@dataclass(frozen=True)
class ServedModel:
    """A model whose requests are one example each, every input (1, T).

    Attributes:
        folder: its artifact.
        inputs, outputs: (batch, sequence) each, outputs (batch, …).
        axis: the name of the sequence axis.
        exported: the budget of the export; budgets: by method, those that a request may choose.
        units: by method, what its budget counts.
        adapters: names of those that a request may take instead of the model's own.
        longest: tokens of the longest request; None where nothing limits it.
        fill: input name → the value of padding, where it is not zero.
    """

    folder: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    axis: str
    exported: Any
    budgets: Mapping[str, BudgetTable]
    units: Mapping[str, str]
    adapters: tuple[str, ...]
    longest: int | None
    fill: Mapping[str, int]

    def request(self, arrays: Any, budget: Any = None, adapter: Any = None) -> Request:
        """The request of one caller, checked.

        Args:
            arrays: input name → (T,) or (1, T), numpy or lists.
            budget: a number, by method a dict, or None for the one of the export.
            adapter: one of `adapters`, or None for the model's own.

        Raises:
            InputError: names, types or shapes that do not fit, more than one example, a text that is too long, or no
                such adapter.
            BudgetError: a fixed budget, or one out of its range.
        """
        if not isinstance(arrays, Mapping):
            raise InputError("Inputs have names.", given=type(arrays).__name__, expected=self._expected())
        fed = feed({name: _one_row(value) for name, value in arrays.items()}, self.inputs)
        if adapter is not None and adapter not in self.adapters:
            raise no_such_adapter(adapter, self.adapters)
        request = Request(fed, None if budget is None else by_method(budget, self.budgets, self.exported), adapter)
        if self.longest is not None and request.length > self.longest:
            raise InputError(
                "The request is too long.",
                given=f"{request.length} tokens",
                expected=f"at most {self.longest}",
                remedy="Cut the text, or send it in parts.",
            )
        return request

    def spent(self, request: Request) -> dict[str, float]:
        """By method, the budget that a request runs at: what an example takes on average, in its unit."""
        exported = self.exported if isinstance(self.exported, Mapping) else dict.fromkeys(self.budgets, self.exported)
        chosen = request.budget if isinstance(request.budget, Mapping) else {}
        spent = {**exported, **chosen}
        return {name: float(spent[name]) for name in self.budgets if isinstance(spent.get(name), int | float)}

    def described(self) -> dict[str, Any]:
        """For people who look at the server: JSON values only."""
        return {
            "inputs": {spec.name: {"dtype": str(spec.dtype), "shape": list(spec.shape)} for spec in self.inputs},
            "outputs": {spec.name: {"dtype": str(spec.dtype), "shape": list(spec.shape)} for spec in self.outputs},
            "longest": self.longest,
            "adapters": list(self.adapters),
            "budget": self.exported,
            "budgets": {
                name: {"least": table.budgets[0], "most": table.budgets[-1], "unit": self.units[name]}
                for name, table in self.budgets.items()
            },
        }

    def probe(self) -> Request:
        """A small request that every such model answers: for health checks."""
        length = min(self.longest or _PROBE_LENGTH, _PROBE_LENGTH)
        return self.request({spec.name: np.ones((1, length), dtype=spec.dtype) for spec in self.inputs})

    def _expected(self) -> str:
        return "; ".join(map(str, self.inputs))


def open_session(folder: str, options: ServeOptions) -> OnnxSession:
    """The session of one replica.

    Raises:
        ArtifactError, ProviderError, MissingDependencyError: as `gatefx.load`.
        InputError: a folder of something else than one model over whole texts.
    """
    artifact = Artifact.open(folder)
    kind = (artifact.manifest.get("kind"), artifact.manifest.get("backend"))
    if kind != _SERVED:
        raise InputError(
            "Only a model that answers whole texts in ONNX Runtime is served.",
            given=f"{folder}, a {kind[0]} for {kind[1]}",
            expected="a folder that gatefx.export wrote for onnxruntime, without generate=True",
        )
    return OnnxSession.open(artifact, provider=options.provider, threads=options.threads, native=options.native)


def served_model(folder: str, session: OnnxSession, options: ServeOptions) -> ServedModel:
    """What a door has to know of the session's model.

    Raises:
        InputError: inputs that are not (batch, sequence) each, or outputs without a row per example.
        ArtifactError: a config that cannot be read.
    """
    axes = {spec.shape for spec in session.inputs}
    batch, axis = next(iter(axes)) if len(axes) == 1 and len(next(iter(axes))) == 2 else (None, None)  # noqa: PLR2004
    rows = all(spec.shape and spec.shape[0] == batch for spec in session.outputs)
    if not isinstance(batch, str) or not isinstance(axis, str) or not rows:
        raise InputError(
            "This model cannot be served: requests of different lengths could not share a batch.",
            given="; ".join(map(str, (*session.inputs, *session.outputs))),
            expected="every input (batch, sequence), every output (batch, …)",
            remedy="Call its session, gatefx.load(folder), from a server of your own.",
        )
    entries = session.manifest.get("runtime_budgets") or {}
    config = _config(folder)
    limits = [limit for limit in (options.longest, *map(config.get, _POSITIONS)) if isinstance(limit, int)]
    pad = config.get("pad_token_id")
    return ServedModel(
        folder=folder,
        inputs=session.inputs,
        outputs=session.outputs,
        axis=axis,
        exported=session.manifest["budget"],
        budgets=BudgetTable.from_manifest(session.manifest),
        adapters=session.adapters,
        units={name: str(entry.get("unit", "")) for name, entry in entries.items()},
        longest=min(limits, default=None),
        fill={_IDS: pad} if isinstance(pad, int) and any(spec.name == MASK for spec in session.inputs) else {},
    )


def no_such_adapter(name: Any, there: Sequence[str]) -> InputError:
    """The error for a request that names an adapter which is none of those `there`."""
    return InputError(
        "The server has no such adapter.",
        given=repr(name),
        expected=f"one of {', '.join(sorted(there))}, or none for the model's own" if there else "no adapter",
        remedy="GET / lists the adapters.",
    )


def _config(folder: str) -> dict[str, Any]:
    """The model's config of transformers; empty where it has none."""
    artifact = Artifact.open(folder, verify=False)
    if _CONFIG not in artifact.manifest["files"]:
        return {}
    try:
        found = json.loads(artifact.file(_CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ArtifactError(f"{_CONFIG} of {folder} cannot be read as JSON.", given=str(error)) from error
    return found if isinstance(found, dict) else {}


def _one_row(value: Any) -> Any:
    """(T,) as (1, T); anything else as it is."""
    if isinstance(value, np.ndarray):
        return value[None] if value.ndim == 1 else value
    flat = isinstance(value, list | tuple) and value and not isinstance(value[0], list | tuple)
    return [value] if flat else value
