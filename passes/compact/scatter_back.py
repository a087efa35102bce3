"""Answers token by token, put back at their places: (B, K, …) → (B, T, …)."""

from __future__ import annotations

import torch
from torch import fx

from ...runtime.cache_names import is_present
from ..find.heads import fill_of
from ..find.kept_tokens import KeptTokens
from ..find.selections import SCATTER, Selection
from ..graph.edit import emit, tensor_value

aten = torch.ops.aten


def scatter_back(graph: fx.Graph, selection: Selection, kept: KeptTokens, origin: str) -> None:
    """Scatter every output that holds kept tokens only, along each of its token axes; `fill_of` elsewhere.

    Parts of a decoder's cache stay as short as they are.
    """
    output = graph.output_node()
    answers = output.args[0]
    if not isinstance(answers, dict):
        return
    with graph.inserting_before(output):
        whole = {
            name: _whole(
                graph, selection, value, sorted(kept.axes[value]), fill_of(name, tensor_value(value).dtype), origin
            )
            if value in kept.axes and not is_present(name)
            else value
            for name, value in answers.items()
        }
    output.args = (whole,)


def _whole(graph: fx.Graph, selection: Selection, value: fx.Node, axes: list[int], fill: float, origin: str) -> fx.Node:
    for axis in axes:
        moved = emit(graph, aten.transpose.int, (value, 1, axis), origin=origin, like=value) if axis > 1 else value
        arguments = (moved, selection.indices, selection.valid, selection.length, fill)
        put = emit(graph, SCATTER, arguments, origin=origin, like=value)
        value = emit(graph, aten.transpose.int, (put, 1, axis), origin=origin, like=value) if axis > 1 else put
    return value
