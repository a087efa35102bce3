"""Artifacts in ONNX Runtime. The provider that was asked for is the one that runs, or opening fails."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np

from ...errors import ArtifactError, BudgetError, InputError
from ..artifact import Artifact
from ..native.library import NativeStatus
from .budget import BudgetTable, by_method
from .inputs import feed
from .onnxruntime_adapters import Adapters
from .onnxruntime_start import start
from .protocol import TensorSpec
from .recovery import RecoveryRule

MODEL_FILE = "model.onnx"

_TYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(double)": np.dtype(np.float64),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(int16)": np.dtype(np.int16),
    "tensor(int8)": np.dtype(np.int8),
    "tensor(uint64)": np.dtype(np.uint64),
    "tensor(uint32)": np.dtype(np.uint32),
    "tensor(uint16)": np.dtype(np.uint16),
    "tensor(uint8)": np.dtype(np.uint8),
    "tensor(bool)": np.dtype(np.bool_),
}


class OnnxSession:
    """An artifact folder opened in ONNX Runtime; see `protocol.Session`. Make one with `OnnxSession.open`."""

    def __init__(
        self, session: Any, artifact: Artifact, provider: str, native: NativeStatus, adapters: Adapters | None = None
    ) -> None:
        self._session = session
        self._artifact = artifact
        self._provider = provider
        self._native = native
        self._inputs = specs_of(session.get_inputs())
        self._outputs = specs_of(session.get_outputs())
        self._overridable = specs_of(session.get_overridable_initializers())
        self._tables = BudgetTable.from_manifest(artifact.manifest)
        self._recovery = RecoveryRule.from_manifest(artifact.manifest)
        self._recovered = 0
        self._chosen: dict[str, float] = {}
        self._adapters = Adapters({}) if adapters is None else adapters
        self._adapter: str | None = None
        missing = {table.initializer for table in self._tables.values()} - {spec.name for spec in self._overridable}
        if missing:
            raise ArtifactError(
                "The artifact's budget controls a buffer that its model does not have.",
                given=", ".join(sorted(missing)),
                expected=", ".join(spec.name for spec in self._overridable) or "no budget table",
            )

    @classmethod
    def open(
        cls,
        artifact: Artifact | str | os.PathLike[str],
        *,
        provider: Literal["cpu", "cuda", "tensorrt"] | str = "cpu",
        threads: int | None = None,
        native: bool | None = None,
    ) -> OnnxSession:
        """A session on `artifact`.

        Args:
            artifact: an opened artifact, or its folder, which is then verified.
            provider: "cpu", "cuda", "tensorrt", or ONNX Runtime's full name.
            threads: within one operator; None leaves the choice to ONNX Runtime.
            native: run our operators by the native kernels. None: on the CPU, where they are built (`session.native`
                says what became of it); True: or fail; False: never.

        Raises:
            MissingDependencyError: onnxruntime is not installed.
            ProviderError: the provider is not there, or does not take the model; native kernels that were asked for
                and cannot be had.
            ArtifactError: the folder does not verify, or ONNX Runtime refuses the model.
            InputError: a number of threads below one.
        """
        opened = artifact if isinstance(artifact, Artifact) else Artifact.open(artifact)
        session, obtained, used = start(opened, MODEL_FILE, provider=provider, threads=threads, native=native)
        return cls(session, opened, obtained, used, Adapters.of(opened))

    @property
    def provider(self) -> str:
        """The first provider of the running session, as ONNX Runtime names it."""
        return self._provider

    @property
    def native(self) -> NativeStatus:
        """Whether gatefx's operators run by native kernels here, and if not, why."""
        return self._native

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What a call must pass."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What a call returns."""
        return self._outputs

    @property
    def overridable(self) -> tuple[TensorSpec, ...]:
        """Buffers with a default that `run` takes as further inputs."""
        return self._overridable

    @property
    def manifest(self) -> Mapping[str, Any]:
        """The fields of the artifact's `gatefx.json`."""
        return self._artifact.manifest

    @property
    def recovered(self) -> int:
        """How many examples were run again so far because their prediction was too uncertain."""
        return self._recovered

    @property
    def budget(self) -> Any:
        """The budget in force: the one that was set, else the one of the export; of several methods a dict by name.

        Setting it (a number, or a dict with some of several) raises BudgetError where the artifact's budget is fixed
        or the value is outside its table.
        """
        exported = self.manifest["budget"]
        if isinstance(exported, Mapping):
            return {**exported, **self._chosen}
        return next(iter(self._chosen.values()), exported)

    @budget.setter
    def budget(self, value: float | Mapping[str, float]) -> None:
        # A new dict: another thread may be reading the old one.
        self._chosen = {**self._chosen, **by_method(value, self._tables, self.manifest["budget"])}

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the adapters that may take the place of the model's own."""
        return self._adapters.names

    @property
    def adapter(self) -> str | None:
        """The adapter in force; None: the model's own. Setting a name that is none of `adapters` raises InputError."""
        return self._adapter

    @adapter.setter
    def adapter(self, name: str | None) -> None:
        if name is not None:
            self._adapters.check(name)
        self._adapter = name

    def __call__(self, **arrays: Any) -> dict[str, np.ndarray]:
        """Outputs by name; see `run`."""
        return self.run(arrays)

    def run(
        self,
        arrays: Mapping[str, Any],
        budget: float | Mapping[str, float] | None = None,
        adapter: str | None = None,
    ) -> dict[str, np.ndarray]:
        """Outputs by name.

        Args:
            arrays: input name → numpy array, torch CPU tensor or nested list; overridable buffers too.
            budget: for this call only, instead of `self.budget`; adapter: likewise, instead of `self.adapter`.

        Raises:
            InputError: inputs that are missing, unknown, or do not fit; no such adapter.
            BudgetError: a budget outside the artifact's table, or one beside its own buffer among `arrays`.
        """
        fed = feed(arrays, self._inputs, self._overridable)
        # One read of the attribute: another thread may set it meanwhile.
        standing = self._chosen
        given = {} if budget is None else by_method(budget, self._tables, self.manifest["budget"])
        for name, value in {**standing, **given}.items():
            self._feed_budget(fed, self._tables[name], value, explicit=name in given)
        options = self._adapters.options(self._adapter if adapter is None else adapter)
        answers = self._answers(fed, options)
        if self._recovery is None:
            return answers
        batched = frozenset(spec.name for spec in self._inputs)
        answers, count = self._recovery.recovered(answers, fed, batched, self._answers)
        self._recovered += count
        return answers

    def _answers(self, fed: dict[str, np.ndarray], options: Any = None) -> dict[str, np.ndarray]:
        try:
            answers = self._session.run(None, fed) if options is None else self._session.run(None, fed, options)
            return {spec.name: answer for spec, answer in zip(self._outputs, answers, strict=True)}
        except Exception as error:
            # What no check of shapes can see, such as a token id beyond the vocabulary. No common base but Exception.
            raise InputError(
                f"{self._provider} could not run the model on these inputs.",
                given=f"{type(error).__name__}: {error}",
                expected="; ".join(str(spec) for spec in self._inputs),
            ) from error

    def _feed_budget(self, fed: dict[str, np.ndarray], table: BudgetTable, budget: float, *, explicit: bool) -> None:
        if table.initializer in fed:
            if explicit:
                raise BudgetError(
                    "The call gives both a budget and the buffer that a budget sets.",
                    given=f"budget={budget!r} and {table.initializer}",
                    expected="one of them",
                )
            return
        spec = next(spec for spec in self._overridable if spec.name == table.initializer)
        fed[table.initializer] = table.fed(budget, spec)


def specs_of(nodes: Iterable[Any]) -> tuple[TensorSpec, ...]:
    """What a session says of its inputs or outputs.

    Raises:
        ArtifactError: a type that numpy lacks.
    """
    return tuple(_spec(node) for node in nodes)


def _spec(node: Any) -> TensorSpec:
    dtype = _TYPES.get(node.type)
    if dtype is None:
        raise ArtifactError(
            "The model has an input or output of a type numpy lacks.", given=f"{node.name}: {node.type}"
        )
    return TensorSpec(node.name, dtype, tuple(node.shape))
