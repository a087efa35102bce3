"""Exported decoders in ONNX Runtime: two models of one folder, with the cache kept on the device between steps.

Every step binds the last step's cache as inputs and lets ONNX Runtime allocate the next one: keys and values never
become numpy arrays. A static cache is bound as both, so that every step writes its rows into the same buffers.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import InputError
from ..artifact import Artifact
from ..cache_names import (
    CROSS_MASK,
    DECODE_FILE,
    LOGITS,
    PART_FILE,
    PROMPT_END,
    is_cross,
    is_past,
    is_present,
    is_seen,
    is_states,
    mask_name,
    past_of,
    positions_name,
)
from ..generation.cache import Cache, key_names
from ..generation.engine import DecoderFacts, last_places, last_tokens, places_after
from ..generation.static_rows import StaticRows, kept_rows, with_room
from ..native.library import NativeStatus
from .budget import BudgetTable, by_method
from .decoder_facts import facts_from
from .onnxruntime import MODEL_FILE, OnnxSession
from .onnxruntime_start import onnxruntime_module, start

_DEVICES = {"CUDAExecutionProvider": "cuda", "TensorrtExecutionProvider": "cuda"}


class OnnxDecoder(OnnxSession):
    """An artifact that `export(…, generate=True)` wrote, opened in ONNX Runtime: an engine for `gatefx.generate`.

    As a session it is the prefill alone, or the encoder, and answers with its cache as arrays. Make one with
    `OnnxDecoder.open`.
    """

    def __init__(
        self, session: Any, artifact: Artifact, provider: str, native: NativeStatus, decode: Any, part: Any = None
    ) -> None:
        super().__init__(session, artifact, provider, native)
        self._decode, self._part = decode, part
        self._device = _DEVICES.get(provider, "cpu")
        self._facts = facts_from(artifact.manifest)

    @classmethod
    def open(
        cls,
        artifact: Artifact | str | os.PathLike[str],
        *,
        provider: str = "cpu",
        threads: int | None = None,
        native: bool | None = None,
    ) -> OnnxDecoder:
        """Sessions on both models; arguments and errors as `OnnxSession.open`."""
        opened = artifact if isinstance(artifact, Artifact) else Artifact.open(artifact)
        prefill, obtained, used = start(opened, MODEL_FILE, provider=provider, threads=threads, native=native)
        decode, _, _ = start(opened, DECODE_FILE, provider=provider, threads=threads, native=native)
        part = None
        if facts_from(opened.manifest).streams:
            part, _, _ = start(opened, PART_FILE, provider=provider, threads=threads, native=native)
        return cls(prefill, opened, obtained, used, decode, part)

    @property
    def facts(self) -> DecoderFacts:
        """What limits it."""
        return self._facts

    @property
    def name(self) -> str:
        """The folder."""
        return str(self._artifact.path)

    def resolved(self, budget: object) -> object:
        """As `Engine.resolved`."""
        if budget is None or budget == self.budget:
            return self.budget
        return self._merged({**self._chosen, **by_method(budget, self._tables, self.manifest["budget"])})

    def prefill(self, ids: Tensor, mask: Tensor, budget: object) -> tuple[Tensor, Cache]:
        """As `Engine.prefill`."""
        positions = places_after((-1,) * len(ids), mask)
        answers = self._bound(self._session, _new(ids, mask, positions), {}, budget)
        if self._facts.start:
            return self._begin({CROSS_MASK: self._value(mask), **answers}, len(ids), budget)
        given = {positions_name(0): self._value(positions), mask_name(0): self._value(mask)}
        return self._answer(answers, mask, last_places(positions), budget, given)

    def decode(self, ids: Tensor, mask: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        """As `Engine.decode`."""
        if self._facts.start:
            cache.check_in_line(mask)
        positions, static = places_after(cache.last, mask), cache.static
        new = _new(ids, mask, positions)
        if static is not None:
            new |= {name: place.numpy() for name, place in static.places(ids.shape[1]).items()}
        answers = self._bound(self._decode, new, cache.entries, cache.budget, in_place=static is not None)
        static = None if static is None else static.after(ids.shape[1])
        return self._answer(answers, mask, last_places(positions), cache.budget, cache.entries, static)

    def read_part(
        self, ids: Tensor, mask: Tensor, budget: object, cache: Cache | None, end: Tensor
    ) -> tuple[Tensor, Cache]:
        """As `Engine.read_part`."""
        if self._part is None:
            raise InputError(
                "This decoder was exported without the graph that reads parts.",
                given=f"a prompt in parts at budget {budget!r}",
                expected='a folder of gatefx.export(…, generate="parts")',
                remedy="export it so, leave chunk out, or pass budget='100%'",
            )
        positions = places_after((-1,) * len(ids) if cache is None else cache.last, mask)
        held = self._blank(len(ids)) if cache is None else cache.entries
        new = _new(ids, mask, positions) | {PROMPT_END: end.numpy()}
        answers = self._bound(self._part, new, held, budget)
        return self._answer(answers, mask, last_places(positions), budget, held)

    def _blank(self, rows: int) -> dict[str, Any]:
        """A cache of so many sequences without a row, and scores that nothing was seen of."""
        found = {}
        for node in self._part.get_inputs():
            if is_past(node.name) or is_seen(node.name):
                sizes = (size if isinstance(size, int) else 0 for size in node.shape[1:])
                dtype = torch.int64 if "int64" in node.type else torch.float32
                found[node.name] = self._value(torch.zeros(rows, *sizes, dtype=dtype))
        return found

    def check_static(self) -> None:
        """As `Engine.check_static`."""
        if not self._facts.static:
            raise InputError(
                "This decoder was exported with a cache that grows.",
                given="max_cache_len with a folder of generate=True",
                expected='a folder of gatefx.export(…, generate="static")',
                remedy="export it so, or leave max_cache_len out",
            )

    def fixed(self, cache: Cache, room: int) -> Cache:
        """As `Engine.fixed`."""
        self.check_static()
        kept = kept_rows({name: value.shape() for name, value in cache.entries.items()})
        entries = {
            name: self._buffer(with_room(torch.from_numpy(value.numpy()), name, room)) if is_past(name) else value
            for name, value in cache.entries.items()
        }
        return _sized(replace(cache, entries=entries, static=StaticRows(kept, room)))

    def _begin(self, encoded: Mapping[str, Any], rows: int, budget: object) -> tuple[Tensor, Cache]:
        """Read the tokens that answers start with, behind an encoder."""
        entries = {past_of(name) if is_present(name) else name: value for name, value in encoded.items()}
        for node in self._decode.get_inputs():
            if is_states(node.name) and not is_cross(node.name):
                _, heads, _, channels = node.shape
                entries[node.name] = self._value(torch.empty(rows, heads, 0, channels))
        start = torch.tensor([self._facts.start] * rows)
        return self.decode(start, torch.ones_like(start), Cache(entries, self.name, budget, (-1,) * rows, (), 0))

    def _merged(self, chosen: Mapping[str, float]) -> Any:
        exported = self.manifest["budget"]
        if isinstance(exported, Mapping):
            return {**exported, **chosen}
        return next(iter(chosen.values()), exported)

    def _buffer(self, tensor: Tensor) -> Any:
        """A copy in memory of the runtime's, which lives as long as anything that is made of it."""
        array = tensor.numpy()
        make = onnxruntime_module().OrtValue.ortvalue_from_shape_and_type
        buffer = make(array.shape, array.dtype, self._device, 0)
        buffer.update_inplace(array)
        return buffer

    def _value(self, tensor: Tensor) -> Any:
        array = np.ascontiguousarray(tensor.numpy())
        return onnxruntime_module().OrtValue.ortvalue_from_numpy(array, self._device, 0)

    def _bound(
        self,
        session: Any,
        new: Mapping[str, np.ndarray],
        cache: Mapping[str, Any],
        budget: object,
        *,
        in_place: bool = False,
    ) -> dict[str, Any]:
        """The answers by name, on the device; of a cache that is written in place, its own buffers."""
        names = [node.name for node in session.get_outputs()]
        levels = self._levels(session, budget)
        try:
            answers = self._overridden(session, names, {**new, **levels}, cache) if levels else None
            if answers is None:
                buffers = cache if in_place else {}
                binding = self._binding(session, names, new, cache, buffers)
                session.run_with_iobinding(binding)
                answers = binding.get_outputs()
        except Exception as error:
            # ONNX Runtime's errors have no common base but Exception.
            raise InputError(
                "ONNX Runtime could not run the decoder on these tokens.", given=f"{type(error).__name__}: {error}"
            ) from error
        return dict(zip(names, answers, strict=True))

    def _binding(
        self,
        session: Any,
        names: list[str],
        new: Mapping[str, np.ndarray],
        cache: Mapping[str, Any],
        buffers: Mapping[str, Any],
    ) -> Any:
        """Inputs and outputs on the device. An output whose input is one of `buffers` goes there."""
        binding = session.io_binding()
        for node in session.get_inputs():
            if node.name in new:
                binding.bind_cpu_input(node.name, new[node.name])
            else:
                binding.bind_ortvalue_input(node.name, cache[node.name])
        for name in names:
            if is_present(name) and past_of(name) in buffers:
                binding.bind_ortvalue_output(name, buffers[past_of(name)])
            else:
                binding.bind_output(name, "cpu" if name == LOGITS else self._device)
        return binding

    def _overridden(
        self, session: Any, names: list[str], fed: Mapping[str, np.ndarray], cache: Mapping[str, Any]
    ) -> list[Any]:
        """A call that replaces buffers: binding takes inputs alone."""
        value = onnxruntime_module().OrtValue.ortvalue_from_numpy
        inputs = [node.name for node in session.get_inputs()]
        known = {*inputs, *(node.name for node in session.get_overridable_initializers())}
        given = {name: value(array, "cpu", 0) for name, array in fed.items() if name in known}
        given |= {name: cache[name] for name in inputs if name not in given}
        answers: list[Any] = session.run_with_ort_values(names, given)
        return answers

    def _levels(self, session: Any, budget: object) -> dict[str, np.ndarray]:
        """Values of the buffers by which budgets act, where a model has them."""
        if not self._tables or budget == self.manifest["budget"]:
            return {}
        known = {node.name: node for node in session.get_overridable_initializers()}
        chosen = by_method(_changeable(budget, self._tables), self._tables, self.manifest["budget"])
        found = {}
        for method, number in chosen.items():
            table = self._tables[method]
            if table.initializer in known:
                shape = tuple(size if isinstance(size, int) else 1 for size in known[table.initializer].shape)
                found[table.initializer] = np.full(shape, table.value(number), dtype=np.float32)
        return found

    def _answer(
        self,
        answers: Mapping[str, Any],
        mask: Tensor,
        last: tuple[int, ...],
        budget: object,
        held: Mapping[str, Any],
        static: StaticRows | None = None,
    ) -> tuple[Tensor, Cache]:
        fresh = {past_of(name) if is_present(name) else name: v for name, v in answers.items() if name != LOGITS}
        cache = _sized(Cache({**held, **fresh}, self.name, budget, last, (), 0, static))
        return last_tokens(torch.from_numpy(answers[LOGITS].numpy()), mask), cache


def _sized(cache: Cache) -> Cache:
    """The cache with its rows and its bytes counted."""
    shapes = {name: tuple(value.shape()) for name, value in cache.entries.items() if is_states(name)}
    size = sum(prod(shape) for shape in shapes.values()) * np.dtype(np.float32).itemsize
    return replace(cache, rows=tuple(shapes[name][2] for name in key_names(shapes)), bytes=size)


def _new(ids: Tensor, mask: Tensor, positions: Tensor) -> dict[str, np.ndarray]:
    tensors = {"input_ids": ids, "decoder_input_ids": ids, "attention_mask": mask, "position_ids": positions}
    return {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in tensors.items()}


def _changeable(budget: object, tables: Mapping[str, BudgetTable]) -> object:
    """Of several methods' budgets, those that may change."""
    return {name: value for name, value in budget.items() if name in tables} if isinstance(budget, Mapping) else budget
