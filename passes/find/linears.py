"""Linear layers of a graph: which node computes W x + b, where W is read, and how wide it is.

Two spellings count: aten.linear with a weight (d_out, d_in), and the addmm of GPT-2's Conv1D with a weight
(d_in, d_out) between two views, whose result is read from the outer view.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import fx

from ...errors import SiteError
from ...models.families import HEAD_MODULES, OUTPUT_PROJECTIONS
from ..graph.edit import tensor_value
from .layer_names import layer_of

aten = torch.ops.aten
_MATRIX = 2


@dataclass(frozen=True)
class Linear:
    """One linear layer: `path` in the model, input x: (…, d_in), output: (…, d_out), weight node.

    Attributes:
        transposed: the weight is stored (d_in, d_out), as Conv1D does.
    """

    path: str
    x: fx.Node
    output: fx.Node
    weight: fx.Node
    d_in: int
    d_out: int
    transposed: bool = False


def find_linears(graph_module: fx.GraphModule) -> tuple[Linear, ...]:
    """Every linear layer with a weight of its own, in graph order."""
    found = []
    for node in graph_module.graph.nodes:
        if node.op == "call_function":
            linear = _as_linear(node) or _as_conv1d(node)
            if linear is not None:
                found.append(linear)
    return tuple(found)


def _as_linear(node: fx.Node) -> Linear | None:
    if node.target is not aten.linear.default:
        return None
    x, weight = node.args[0], node.args[1]
    if not isinstance(x, fx.Node) or not isinstance(weight, fx.Node) or weight.op != "get_attr":
        return None
    d_out, d_in = tensor_value(weight).shape
    return Linear(str(weight.target).rpartition(".")[0], x, node, weight, int(d_in), int(d_out))


def _as_conv1d(node: fx.Node) -> Linear | None:
    """addmm(bias, view(x, [-1, d_in]), W) followed by one view back to x's leading axes."""
    if node.target is not aten.addmm.default or len(node.users) != 1:
        return None
    flat, weight = node.args[1], node.args[2]
    outer = next(iter(node.users))
    views = (aten.view.default, aten.reshape.default)
    if not isinstance(flat, fx.Node) or flat.target not in views or outer.target not in views:
        return None
    x = flat.args[0]
    if not isinstance(x, fx.Node) or not isinstance(weight, fx.Node) or weight.op != "get_attr":
        return None
    if tensor_value(outer).shape[:-1] != tensor_value(x).shape[:-1]:
        return None
    d_in, d_out = tensor_value(weight).shape
    return Linear(str(weight.target).rpartition(".")[0], x, outer, weight, int(d_in), int(d_out), transposed=True)


Names = str | tuple[str, ...]


def select_targets(
    linears: tuple[Linear, ...],
    targets: Names,
    *,
    exclude: Names | None = None,
    layers: tuple[int, ...] | None = None,
) -> tuple[Linear, ...]:
    """The linears that PEFT's target rules name.

    Args:
        targets: "all-linear" (all but heads and output projections), a regular expression that matches whole paths (a
            string), or names and dotted suffixes (a tuple).
        exclude: likewise, taken out again.
        layers: keep only these layers, by the first number in the path.

    Raises:
        SiteError: nothing matches, or an expression is invalid.
    """
    if targets == "all-linear":
        chosen = [linear for linear in linears if not is_output(linear.path)]
    else:
        chosen = [linear for linear in linears if _matches(linear.path, targets)]
    if exclude is not None:
        chosen = [linear for linear in chosen if not _matches(linear.path, exclude)]
    if layers is not None:
        chosen = [linear for linear in chosen if layer_of(linear.path).rpartition(".")[2] in map(str, layers)]
    if not chosen:
        raise _nothing_matches(linears, targets, exclude, layers)
    return tuple(chosen)


def _matches(path: str, names: Names) -> bool:
    if isinstance(names, str):
        return bool(_pattern(names).fullmatch(path)) or _ends_with(path, names)
    return any(_ends_with(path, name) for name in names)


def _nothing_matches(
    linears: tuple[Linear, ...], targets: Names, exclude: Names | None, layers: tuple[int, ...] | None
) -> SiteError:
    names = sorted({linear.path.rpartition(".")[2] for linear in linears})
    given = [f"target_modules={targets!r}"]
    given += [f"exclude_modules={exclude!r}"] if exclude is not None else []
    given += [f"layers_to_transform={layers!r}"] if layers is not None else []
    return SiteError(
        f"No linear layer of the model matches {given[0]}.",
        given=", ".join(given),
        expected=f'"all-linear", or names among {", ".join(names) or "none: the model has no linear layer"}',
        remedy="name the last path component of the layers to adapt",
    )


def is_output(path: str) -> bool:
    """Whether a linear is a task head or an output projection, which "all-linear" leaves alone."""
    parts = path.split(".")
    return any(part in HEAD_MODULES or part in OUTPUT_PROJECTIONS for part in parts)


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise SiteError(
            f"target_modules={text!r} is no regular expression: {error}.",
            expected="a valid expression that matches whole module paths",
        ) from error


def _ends_with(path: str, name: str) -> bool:
    return path == name or path.endswith(f".{name}")
