"""Turns what a caller passes into the arrays a session takes, or says what does not fit."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...errors import InputError
from .protocol import TensorSpec

_IDS = "input_ids"
"""How names of inputs end that hold places in a vocabulary."""


def feed(
    arrays: Mapping[str, Any], required: Sequence[TensorSpec], optional: Sequence[TensorSpec] = ()
) -> dict[str, np.ndarray]:
    """Arrays of the types and ranks that the session expects, by name.

    Args:
        arrays: input name → numpy array, torch CPU tensor or nested list. Integers may be of any width if their
            values fit; floats of any width; integers serve as floats, never the reverse.
        required: specs that must be there.
        optional: specs that may be there.

    Raises:
        InputError: a name that is missing or unknown; a value that is empty, ragged, of another rank, size or kind;
            a varying axis that has different sizes in two inputs.
    """
    specs = {spec.name: spec for spec in (*required, *optional)}
    expected = "; ".join(str(spec) for spec in required)
    if not isinstance(arrays, Mapping):
        raise InputError("Inputs are given by name.", given=type(arrays).__name__, expected=f"a mapping: {expected}")
    unknown = [name for name in arrays if name not in specs]
    missing = [spec.name for spec in required if spec.name not in arrays]
    if unknown or missing:
        raise InputError(
            f"The model has no input {', '.join(map(repr, unknown))}."
            if unknown
            else f"The call lacks the input {', '.join(map(repr, missing))}.",
            given=", ".join(arrays) or "nothing",
            expected=expected,
        )
    fed = {name: _converted(value, specs[name]) for name, value in arrays.items()}
    _check_shared_sizes(fed, specs)
    return fed


def _converted(value: Any, spec: TensorSpec) -> np.ndarray:
    array = _as_array(value, spec)
    if array.dtype.kind not in "biuf":
        raise _misfit(spec, f"values of type {array.dtype}", "numbers")
    if array.ndim != len(spec.shape):
        raise _misfit(spec, f"shape {array.shape}", f"{len(spec.shape)} axes")
    if array.size == 0:
        raise _misfit(spec, f"shape {array.shape}", "no empty axis")
    if spec.name.endswith(_IDS) and array.min() < 0:
        raise _misfit(spec, f"the id {array.min()}", "ids from 0 on: engines would read them from the vocabulary's end")
    for size, wanted in zip(array.shape, spec.shape, strict=True):
        if isinstance(wanted, int) and size != wanted:
            raise _misfit(spec, f"shape {array.shape}", f"size {wanted} where the model fixes it")
    return np.ascontiguousarray(_cast(array, spec)).reshape(array.shape)


def _as_array(value: Any, spec: TensorSpec) -> np.ndarray:
    # A tensor can only be passed where torch was imported; a server that passes arrays never pays for that import.
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        if value.device.type != "cpu":
            raise _misfit(spec, f"a tensor on {value.device}", "a tensor on the CPU: call .cpu() on it")
        value = value.detach()
        value = value.float() if value.dtype == torch.bfloat16 else value
        return np.asarray(value.numpy())
    try:
        return np.asarray(value)
    except ValueError as error:
        raise _misfit(spec, "rows of different lengths", "a rectangular array: pad the rows") from error


def _cast(array: np.ndarray, spec: TensorSpec) -> np.ndarray:
    target = spec.dtype
    if array.dtype == target:
        return array
    if target.kind in "iu" and array.dtype.kind in "biu":
        limits = np.iinfo(target)
        if array.dtype.kind != "b" and (int(array.min()) < limits.min or int(array.max()) > limits.max):
            raise _misfit(spec, f"values from {array.min()} to {array.max()}", f"values that fit in {target}")
        return array.astype(target)
    if target.kind == "f":
        try:
            with np.errstate(over="raise"):
                return array.astype(target)
        except FloatingPointError as error:
            raise _misfit(spec, f"values up to {np.abs(array).max()}", f"values that fit in {target}") from error
    if target.kind == "b" and array.dtype.kind in "iu" and not np.setdiff1d(array, [0, 1]).size:
        return array.astype(target)
    raise _misfit(spec, f"values of type {array.dtype}", f"values of type {target}")


def _misfit(spec: TensorSpec, given: str, expected: str) -> InputError:
    return InputError(f"The input {spec.name!r} does not fit.", given=given, expected=f"{expected} ({spec})")


def _check_shared_sizes(fed: Mapping[str, np.ndarray], specs: Mapping[str, TensorSpec]) -> None:
    seen: dict[str, tuple[str, int]] = {}
    for name, array in fed.items():
        for size, axis in zip(array.shape, specs[name].shape, strict=True):
            if not isinstance(axis, str):
                continue
            first, other = seen.setdefault(axis, (name, size))
            if size != other:
                raise InputError(
                    f"The inputs do not agree on the axis {axis!r}.",
                    given=f"{first} has {other}, {name} has {size}",
                    expected="; ".join(str(specs[name]) for name in fed),
                )
