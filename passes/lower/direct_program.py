"""An exported program whose operators need no decomposing on the way to ONNX, so that it is not traced once more.

`torch.onnx` decomposes every program it is given, by running it again over symbolic sizes: two thirds of the time that
a decoder of thirty layers takes, and the answer is the same graph where every operator has an ONNX form of its own.

Sound: an operator is left alone only if the table of decompositions, from which `torch.onnx` has taken what it can
translate, does not hold it, if it changes none of its inputs, and if it answers with a new tensor or is one of
`_VIEWS`. Any other operator has the whole program decomposed, as ever; so has a flattening of several axes that vary,
whose sizes come out simpler when they are traced once more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from ..graph.edit import shape_of

aten = torch.ops.aten

_VIEWS = frozenset(
    {
        aten.view.default,
        aten.reshape.default,
        aten.transpose.int,
        aten.permute.default,
        aten.unflatten.int,
        aten.t.default,
        aten.unsqueeze.default,
        aten.squeeze.dim,
        aten.expand.default,
        aten.expand_as.default,
        aten.chunk.default,
        aten.split.Tensor,
        aten.split_with_sizes.default,
        aten.unbind.int,
        aten.slice.Tensor,
        aten.select.int,
        aten.alias.default,
    }
)
"""Operators that answer with a view and that torch.onnx translates as they are."""

_SPELT = {
    aten.__and__.Tensor: aten.bitwise_and.Tensor,
    aten.__or__.Tensor: aten.bitwise_or.Tensor,
    aten.min.other: aten.minimum.default,
}
"""Operators that are another one by another name."""

_COPIES = frozenset({aten.contiguous.default, aten.detach.default})
"""Operators that answer with what they are given, as a copy does."""

_READ = aten.promote_types.default
"""An operator that answers with a type: the trace has read it, so nothing uses the answer."""

_CASTS = {aten.to.dtype: 1, aten.to.device: 2}
"""Casts → the place of the type among their arguments."""


class DirectProgram(ExportedProgram):
    """A program that is decomposed only where an operator needs it."""

    def run_decompositions(
        self, decomp_table: dict[torch._ops.OperatorBase, Callable[..., Any]] | None = None
    ) -> ExportedProgram:
        """Itself if every operator can stay as it is, else the program that torch makes of it."""
        if decomp_table is None or any(_needs_decomposing(node, decomp_table) for node in self.graph.nodes):
            decomposed: ExportedProgram = super().run_decompositions(decomp_table)
            return decomposed
        return self


def direct(program: ExportedProgram) -> DirectProgram:
    """The same program, its operators spelt as torch.onnx knows them."""
    for node in list(program.graph.nodes):
        if node.target == _READ and not node.users:
            program.graph.erase_node(node)
        else:
            _spell(node)
    return DirectProgram(
        root=program.graph_module,
        graph=program.graph,
        graph_signature=program.graph_signature,
        state_dict=program.state_dict,
        range_constraints=program.range_constraints,
        module_call_graph=program.module_call_graph,
        example_inputs=program.example_inputs,
        constants=program.constants,
        verifiers=program.verifiers,
    )


def _spell(node: fx.Node) -> None:
    if node.target in _SPELT:
        node.target = _SPELT[node.target]
    elif node.target in _COPIES:
        node.target, node.args = aten.clone.default, node.args[:1]
        node.kwargs = {"memory_format": torch.contiguous_format}
    elif node.target in _CASTS:
        place = _CASTS[node.target]
        node.kwargs = {"dtype": node.args[place] if place < len(node.args) else node.kwargs["dtype"]}
        node.target, node.args = aten._to_copy.default, node.args[:1]


def _needs_decomposing(node: fx.Node, table: dict[torch._ops.OperatorBase, Callable[..., Any]]) -> bool:
    if node.op != "call_function":
        return node.op not in ("placeholder", "output")  # subgraphs of control flow
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return isinstance(target, torch._ops.OperatorBase)  # operators of higher order; else arithmetic on sizes
    if target is aten.flatten.using_ints:
        return target in table or _merges_sizes(node)
    schema = target._schema
    aliases = any(answer.alias_info is not None for answer in schema.returns)
    return target in table or schema.is_mutable or (aliases and target not in _VIEWS)


def _merges_sizes(flatten: fx.Node) -> bool:
    """Whether two of the axes that it joins have sizes that vary: it answers with fewer such axes than it is given."""
    return _varying(flatten) < _varying(flatten.all_input_nodes[0])


def _varying(node: fx.Node) -> int:
    return sum(not isinstance(size, int) for size in shape_of(node))
