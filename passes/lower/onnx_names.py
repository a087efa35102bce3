"""Readable names in a lowered ONNX model: for dynamic axes, and for nodes the module each came from."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir

MODULE_KEY = "gatefx.module"
"""Node metadata: dotted path of the torch module that the node came from."""

_AXES = ("batch", "sequence")
"""What the leading axes of an input are called."""


def name_axes(model: onnx_ir.Model, input_names: Sequence[str]) -> None:
    """Rename the exporter's size symbols: `batch` and `sequence` if the first input that has one is so read.

    One symbol gets one name everywhere, also inside a formula (`sequence + 1`). A second symbol on the same axis, say
    another sequence, is called after its input: `decoder_input_ids_sequence`.
    """
    names: dict[str, str] = {}
    for value in model.graph.inputs:
        if value.name not in input_names or value.shape is None:
            continue
        for axis, dim in enumerate(value.shape):
            symbol = None if isinstance(dim, int) else dim.value
            # A size that export found to be fixed can still be spelt as a formula, "3".
            if symbol is None or symbol in names or not symbol.isidentifier():
                continue
            plain = _AXES[axis] if axis < len(_AXES) else f"axis{axis}"
            taken = plain in names.values() or axis >= len(_AXES)
            names[symbol] = f"{value.name}_{plain}" if taken else plain
    for value in _values(model):
        if value.shape is not None:
            value.shape = _renamed(value.shape, names)


def _renamed(shape: onnx_ir.Shape, names: dict[str, str]) -> onnx_ir.Shape:
    import onnx_ir

    dims: list[int | str | None] = []
    for dim in shape:
        if isinstance(dim, int) or dim.value is None:
            dims.append(dim if isinstance(dim, int) else None)
        elif dim.value.isdecimal():
            dims.append(int(dim.value))
        else:
            dims.append(re.sub(r"[A-Za-z_]\w*", lambda word: names.get(word[0], word[0]), dim.value))
    return onnx_ir.Shape(dims)


def _values(model: onnx_ir.Model) -> Iterator[onnx_ir.Value]:
    yield from model.graph.inputs
    for node in model.graph.all_nodes():
        yield from node.outputs


def name_nodes(model: onnx_ir.Model) -> None:
    """Call each node `<module path>/<operator>`, and drop the exporter's notes (they quote files of this machine)."""
    seen: Counter[str] = Counter()
    for node in model.graph.all_nodes():
        path = _module_path(node)
        name = f"{path}/{node.op_type}"
        node.name = f"{name}_{seen[name]}" if seen[name] else name
        seen[name] += 1
        node.metadata_props.clear()
        if path:
            node.metadata_props[MODULE_KEY] = path
    for value in _values(model):
        value.metadata_props.clear()
    for value in model.graph.initializers.values():
        value.metadata_props.clear()
    model.graph.metadata_props.clear()


def _module_path(node: onnx_ir.Node) -> str:
    """Dotted path of the innermost module around `node`; empty for what belongs to no module."""
    scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
    # The last entry names the graph node itself.
    inner = [scope for scope in scopes[:-1] if scope and not scope.startswith("_empty_nn_module_stack")]
    return str(inner[-1]) if inner else ""


def rename_axes(model: onnx_ir.Model, axes: Mapping[str, Sequence[str]]) -> None:
    """Rename the symbols of inputs' sizes, also inside formulas, to what `axes` calls them: input → a name an axis."""
    import onnx_ir

    names: dict[str, str] = {}
    for value in model.graph.inputs:
        for dim, name in zip(value.shape or (), axes.get(value.name or "", ()), strict=False):
            if not isinstance(dim, int) and dim.value is not None:
                names.setdefault(dim.value, name)
    for value in _values(model):
        if value.shape is not None:
            dims = (dim if isinstance(dim, int) else _called(dim.value, names) for dim in value.shape)
            value.shape = onnx_ir.Shape(tuple(dims))


def _called(symbol: str | None, names: Mapping[str, str]) -> str | None:
    """A symbol, or a formula of several, with new names: all at once, for one's new name may be another's old one."""
    if symbol is None or not names:
        return symbol
    longest_first = sorted(names, key=len, reverse=True)  # one name may be the beginning of another
    return re.sub("|".join(map(re.escape, longest_first)), lambda found: names[found[0]], symbol)
