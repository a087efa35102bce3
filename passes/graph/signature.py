"""What a captured graph takes and returns: names, dtypes, axes with their bounds; the check of a call against it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from ...errors import InputError


@dataclass(frozen=True)
class Axis:
    """One axis of an input: a fixed `size`, or a symbol with bounds (`most` None is unbounded)."""

    symbol: str
    size: int | None = None
    least: int = 0
    most: int | None = None

    def __str__(self) -> str:
        return str(self.size) if self.size is not None else self.symbol


@dataclass(frozen=True)
class InputSpec:
    """One input of the graph."""

    name: str
    dtype: torch.dtype
    axes: tuple[Axis, ...]

    def __str__(self) -> str:
        return f"{self.name}: {str(self.dtype).removeprefix('torch.')}[{', '.join(map(str, self.axes))}]"


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs of a captured graph, in order.

    Attributes:
        architecture: class name of the model it came from.
        answer_type: transformers' ModelOutput class that the model returned, or None for any other answer.
    """

    inputs: tuple[InputSpec, ...]
    outputs: tuple[str, ...]
    architecture: str = ""
    answer_type: type | None = None

    @property
    def input_names(self) -> tuple[str, ...]:
        """The inputs' names in the order the graph takes them."""
        return tuple(spec.name for spec in self.inputs)

    def described(self) -> dict[str, object]:
        """The signature as plain data, the part of a manifest that every artifact has."""
        return {
            "inputs": list(self.input_names),
            "outputs": list(self.outputs),
            "axes": {spec.name: [str(axis) for axis in spec.axes] for spec in self.inputs},
        }

    def arrange(self, given: Mapping[str, object]) -> list[Tensor]:
        """The call's tensors in the graph's order.

        Raises:
            InputError: a missing or unknown input, a wrong type or rank, or a size the captured graph does not take.
        """
        missing = [name for name in self.input_names if given.get(name) is None]
        unknown = [name for name, value in given.items() if name not in self.input_names and value is not None]
        if missing or unknown:
            words = [f"misses {', '.join(missing)}"] if missing else []
            words += [f"has no input {', '.join(unknown)}"] if unknown else []
            raise InputError(
                f"The captured model {' and '.join(words)}.",
                given=", ".join(given) or "no inputs",
                expected=", ".join(map(str, self.inputs)),
                remedy="pass exactly the inputs that example_inputs had when the model was captured",
            )
        sizes: dict[str, tuple[int, str]] = {}
        return [_fitting(spec, given[spec.name], sizes) for spec in self.inputs]


def example_for(signature: Signature) -> dict[str, Tensor]:
    """A small batch that fits a signature: masks of ones, zeros elsewhere, another size for every symbol."""
    free = iter((2, 7, 11, 13, 17, 19, 23, 29))
    sizes: dict[str, int] = {}
    for axis in (axis for spec in signature.inputs for axis in spec.axes if axis.size is None):
        if axis.symbol not in sizes:
            wanted = max(next(free), axis.least)
            sizes[axis.symbol] = wanted if axis.most is None else min(wanted, axis.most)
    return {
        spec.name: torch.full(
            [axis.size if axis.size is not None else sizes[axis.symbol] for axis in spec.axes],
            1 if "mask" in spec.name else 0,
            dtype=spec.dtype,
        )
        for spec in signature.inputs
    }


def _fitting(spec: InputSpec, value: object, sizes: dict[str, tuple[int, str]]) -> Tensor:
    if not isinstance(value, Tensor):
        raise InputError(f"{spec.name} is no tensor.", given=type(value).__name__, expected=str(spec))
    if value.is_floating_point() != spec.dtype.is_floating_point:
        raise InputError(f"{spec.name} has another type.", given=_shown(spec, value), expected=str(spec))
    if value.dim() != len(spec.axes):
        raise InputError(f"{spec.name} has another rank.", given=_shown(spec, value), expected=str(spec))
    for position, axis in enumerate(spec.axes):
        problem = _misfit(axis, value.shape[position], sizes, f"{spec.name} axis {position}")
        if problem:
            raise InputError(f"{spec.name}: axis {position} {problem}.", given=_shown(spec, value), expected=str(spec))
    return value


def _shown(spec: InputSpec, value: Tensor) -> str:
    return f"{spec.name} of shape {tuple(value.shape)}, {str(value.dtype).removeprefix('torch.')}"


def _misfit(axis: Axis, size: int, sizes: dict[str, tuple[int, str]], where: str) -> str | None:
    if axis.size is not None:
        return None if size == axis.size else f"has {size} entries, the graph was captured with {axis.size}"
    if axis.most is not None and size > axis.most:
        return f"has {size} entries, the model takes at most {axis.most}"
    if size < 1:
        return "is empty"
    other, place = sizes.setdefault(axis.symbol, (size, where))
    return None if size == other else f"has {size} entries but {place}, the same axis, has {other}"


def constant_size(size: int | torch.SymInt) -> int | None:
    """The number that a size always is, also where tracing found out late and left a symbol's wrapping around it."""
    if isinstance(size, int):
        return size
    known = size.node.maybe_as_int()
    return int(known) if known is not None else None


def read_axes(value: Tensor, bounds: Mapping[str, tuple[int, int | None]], names: dict[str, str]) -> tuple[Axis, ...]:
    """The axes of a symbolic tensor.

    Args:
        bounds: each symbol's range.
        names: symbol → the name people read; new symbols are added: "batch", "sequence", then "length_2", …
    """
    axes = []
    for position, size in enumerate(value.shape):
        known = constant_size(size)
        if known is not None:
            axes.append(Axis(str(known), size=known))
            continue
        free = "batch" if position == 0 else "sequence"
        name = names.setdefault(str(size), free if free not in names.values() else f"length_{len(names)}")
        least, most = bounds.get(str(size), (0, None))
        axes.append(Axis(name, least=least, most=most))
    return tuple(axes)


def signature_of(graph_module: fx.GraphModule) -> Signature:
    """The signature that capture stored with the graph."""
    signature = graph_module.meta["signature"]
    if not isinstance(signature, Signature):
        raise InputError("The graph carries no signature.", remedy="make it with gatefx.prepare")
    return signature
