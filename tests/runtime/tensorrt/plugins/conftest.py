"""TensorRT's plugin front end without TensorRT: that of tensorrt-lean, whose registry, creators and types are real.

What only a builder hands out stands in here: expressions of sizes (evaluated in Python), and descriptions of tensors,
whose formats lean leaves out. Plugins stay registered for a process's life, so `plugin_cases.py` has one of its own.
"""

from __future__ import annotations

import enum
import importlib
import operator
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

Sizes = Mapping[str, int]


class TensorFormat(enum.IntEnum):
    """The one layout that gatefx's plugins take, as TensorRT numbers it, and another."""

    LINEAR = 0
    CHW4 = 3


@dataclass(frozen=True)
class Expression:
    """A size that may be known when the engine runs only."""

    value: Callable[[Sizes], int]
    fixed: bool

    def is_constant(self) -> bool:
        return self.fixed

    def get_constant_value(self) -> int:
        return self.value({})


class Expressions(list[Any]):
    """Sizes of a tensor, or as many empty places."""

    def __init__(self, sizes: Any = 0) -> None:
        super().__init__([None] * sizes if isinstance(sizes, int) else sizes)


class Builder:
    """Makes expressions of expressions, as a plugin asks for them."""

    def __init__(self, kinds: Any) -> None:
        self._operations = {
            kinds.PROD: operator.mul,
            kinds.SUM: operator.add,
            kinds.CEIL_DIV: lambda left, right: -(-left // right),
        }

    def constant(self, value: int) -> Expression:
        return Expression(lambda _: value, fixed=True)

    def symbol(self, name: str) -> Expression:
        return Expression(lambda sizes: sizes[name], fixed=False)

    def operation(self, kind: Any, left: Expression, right: Expression) -> Expression:
        apply = self._operations[kind]
        return Expression(lambda sizes: apply(left.value(sizes), right.value(sizes)), left.fixed and right.fixed)


class SymbolicArgument:
    """An integer of a launch; TensorRT's own class takes a builder's expressions only."""


@dataclass
class Description:
    """A tensor in words: sizes, type and layout."""

    dims: tuple[int, ...] = ()
    type: Any = None
    format: Any = TensorFormat.LINEAR
    scale: float = 1.0


@dataclass
class DynamicDescription:
    """A tensor with the range of its sizes."""

    desc: Description
    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


@dataclass
class Launch:
    """One launch: what the plugin says of it, evaluated for one batch."""

    entry: str
    ptx: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared: int
    extras: tuple[int, ...]


@dataclass
class Front:
    """TensorRT's side of a plugin's life."""

    trt: Any
    plugin_module: Any
    combinations: list[tuple[Any, ...]] = field(default_factory=list)

    def creator(self, name: str) -> Any:
        return self.trt.get_plugin_registry().get_creator(name, "1", "gatefx")

    def plugin(self, name: str) -> Any:
        """What the plugin's creator makes for a build, ahead of time."""
        library = importlib.import_module(f"{self.plugin_module.__name__}._lib")
        request = self.trt.QuickPluginCreationRequest.STRICT_AOT
        nothing = self.trt.PluginFieldCollection([])
        creator = library._TemplatePluginCreator(name, "gatefx", {})
        return creator.create_plugin(name, "gatefx", nothing, self.trt.TensorRTPhase.BUILD, request)

    def output_shape(self, plugin: Any, types: list[Any], shapes: list[tuple[Any, ...]], sizes: Sizes) -> list[int]:
        """The sizes of the plugin's output; shapes hold numbers and names of open axes, whose values are `sizes`."""
        plugin.get_output_data_types(types, [len(shape) for shape in shapes])
        builder = Builder(self.trt.DimensionOperation)
        (output,) = plugin.get_output_shapes([self._expressions(builder, shape) for shape in shapes], [], builder)
        return [size.value(sizes) for size in output]

    def supported(self, plugin: Any, types: list[Any], shapes: list[tuple[Any, ...]], output: Any) -> list[Any]:
        """The combinations of types that the plugin takes; needs `output_shape` before."""
        described = [self._described(kind, shape) for kind, shape in zip(types, shapes, strict=True)]
        found = plugin.get_supported_format_combinations([*described, output], len(types))
        width = len(types) + 1
        rows = [found[start : start + width] for start in range(0, len(found), width)]
        assert all(one.format == TensorFormat.LINEAR for row in rows for one in row)
        return [tuple(one.type for one in row) for row in rows]

    def launch(self, plugin: Any, types: list[Any], shapes: list[tuple[Any, ...]], sizes: Sizes) -> Launch:
        """What is launched for a batch of `sizes`."""
        answer = self.output_shape(plugin, types, shapes, sizes)
        output = self._described(types[0], tuple(answer))
        described = [self._described(kind, shape) for kind, shape in zip(types, shapes, strict=True)]
        self.supported(plugin, types, shapes, output)
        plugin.configure_plugin(described, [output])
        plugin.set_tactic(0)
        builder, told, extras = Builder(self.trt.DimensionOperation), SimpleNamespace(), Extras()
        inputs = [self._expressions(builder, shape) for shape in shapes]
        plugin.get_launch_params(inputs, [*described, output], len(types), told, extras, builder)
        entry, ptx = plugin.get_kernel([one.desc for one in described], [output.desc])
        value = {name: argument.expr.value(sizes) for name, argument in vars(told).items()}
        return Launch(
            entry,
            ptx.decode(),
            (value["grid_x"], value["grid_y"], value["grid_z"]),
            (value["block_x"], value["block_y"], value["block_z"]),
            value["shared_mem"],
            tuple(extras[place].expr.value(sizes) for place in range(extras.nbSymExprs)),
        )

    def _described(self, kind: Any, shape: tuple[Any, ...]) -> DynamicDescription:
        least, most = (tuple(size if isinstance(size, int) else other for size in shape) for other in (1, 4096))
        open_sizes = tuple(size if isinstance(size, int) else -1 for size in shape)
        return DynamicDescription(Description(open_sizes, kind), least, most, most)

    @staticmethod
    def _expressions(builder: Builder, shape: tuple[Any, ...]) -> Expressions:
        return Expressions([builder.constant(s) if isinstance(s, int) else builder.symbol(s) for s in shape])


class Extras(dict[int, Any]):
    """Where a plugin leaves the integers between its inputs and outputs."""

    nbSymExprs = 0  # noqa: N815  # TensorRT's name


@pytest.fixture(scope="session")
def front() -> Front:
    """TensorRT's plugin front end; `tensorrt` is another name of tensorrt-lean from here on."""
    trt = pytest.importorskip("tensorrt_lean", reason="tensorrt-lean is not installed here: no plugin is registered")
    stand_ins = {
        "TensorFormat": TensorFormat,
        "ITensor": Description,
        "IDimensionExpr": Expression,
        "DimsExprs": Expressions,
        "ISymExpr": SymbolicArgument,
        "PluginTensorDesc": Description,
        "DynamicPluginTensorDesc": DynamicDescription,
    }
    for name, kind in stand_ins.items():
        setattr(trt, name, kind)
    sys.modules["tensorrt"] = trt
    module = importlib.import_module("tensorrt_lean_bindings.plugin")
    sys.modules["tensorrt.plugin"] = module
    trt.plugin = module
    return Front(trt, module)
