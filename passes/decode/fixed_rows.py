"""Fix rows: a decode that appends to its cache → one that writes into a cache whose size stays.

    cat([past_key_values.i.key, k], 2)  (B, H, S + T, d)      index_copy(past_key_values.i.key, 2, cache_position.g, k)
    cat([past_positions.g, p], 1)       (B, S + T)       →    index_copy(past_positions.g, 1, cache_position.g, p)
    cat([past_mask.g, m], 1)            (B, S + T)            index_copy(past_mask.g, 1, cache_position.g, m)
                                                              cache_position.g (T,) int64, an input (transformers' name)

Shapes no longer change from step to step, and `in_place` lets torch write into the very buffers that it is given.

Sound: an attention reads rows by their positions and masks, in any order, and rows that are not written yet have mask
0. Everything up to the attentions works row by row (`append.py`).

Refuses an encoder-decoder, whose answers count their places by the rows of the cache.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import fx

from ...errors import InputError, PassError
from ...runtime.cache_names import CacheLayout, cache_position_name, group_of, is_past
from ..contract import Pass
from ..find.answer_rows import has_encoder
from ..find.attention import is_fused
from ..graph.edit import copy_graph, emit, shape_of, stamp, tensor_value
from ..graph.signature import InputSpec, signature_of
from ..report import Outcome

aten = torch.ops.aten


@dataclass(frozen=True)
class FixRows(Pass):
    """Write new rows where the caller says, instead of behind the others."""

    after: ClassVar[tuple[str, ...]] = ("ReadCache",)

    def requires(self, graph_module: fx.GraphModule) -> None:
        """A decoder without an encoder."""
        if has_encoder(graph_module):
            raise InputError(
                "An encoder-decoder has no static cache.",
                given="a graph that reads an encoder",
                expected="a decoder without one",
                remedy="leave max_cache_len out, and export with generate=True",
            )

    def apply(self, graph_module: fx.GraphModule) -> Outcome:
        """Rewrite every join of the cache."""
        layout: CacheLayout = graph_module.meta["cache"]
        names = signature_of(graph_module).input_names
        pasts = dict(zip(graph_module.graph.find_nodes(op="placeholder"), names, strict=True))
        pasts = {node: name for node, name in pasts.items() if is_past(name)}
        places = [self._place(graph_module, group) for group in range(layout.group_count)]
        written = [self._write(past, places[group_of(name, layout)]) for past, name in pasts.items()]
        _follow_sizes(graph_module, set(written))
        graph_module.graph.eliminate_dead_code(is_impure_node=lambda n: n.op in ("placeholder", "output"))
        return Outcome(tuple(pasts.values()))

    def _place(self, graph_module: fx.GraphModule, group: int) -> fx.Node:
        """The input that says where the new rows of a group go."""
        graph, name, signature = graph_module.graph, cache_position_name(group), signature_of(graph_module)
        inputs = graph.find_nodes(op="placeholder")
        with graph.inserting_after(inputs[-1]):
            node = stamp(graph.placeholder(name.replace(".", "_")), origin=self.name, like=inputs[0])
        value = tensor_value(inputs[0])
        with value.fake_mode:  # type: ignore[attr-defined]  # symbolic values are fake
            node.meta["val"] = value.new_empty((value.shape[1],), dtype=torch.int64)
        spec = InputSpec(name, torch.int64, (signature.inputs[0].axes[1],))
        graph_module.meta["signature"] = replace(signature, inputs=(*signature.inputs, spec))
        return node

    def _write(self, past: fx.Node, place: fx.Node) -> fx.Node:
        joins = [user for user in past.users if user.target is aten.cat.default]
        if len(joins) != 1 or joins[0].all_input_nodes[0] is not past:
            raise PassError(f"{past.name} is not joined with new rows once.", given=str([*past.users]))
        join, new = joins[0], joins[0].all_input_nodes[1]
        with past.graph.inserting_before(join):
            arguments = (past, join.args[1], place, new)
            made = emit(past.graph, aten.index_copy.default, arguments, origin=self.name, like=join)
        join.replace_all_uses_with(made)
        return made


def in_place(graph_module: fx.GraphModule) -> fx.GraphModule:
    """The graph as it runs in torch: rows are written into the buffers given, which are answered again.

    Sound: nothing but its size reads a buffer beside the node that writes it. No pass may follow, for graphs of passes
    are functional.
    """
    made = copy_graph(graph_module)
    for node in made.graph.find_nodes(op="call_function", target=aten.index_copy.default):
        node.target = aten.index_copy_.default
    made.recompile()
    return made


def _follow_sizes(graph_module: fx.GraphModule, changed: set[fx.Node]) -> None:
    """Give all that is made of the written rows its sizes again, up to the attentions."""
    for node in graph_module.graph.nodes:
        stands = node.op != "call_function" or is_fused(graph_module, node) or node in changed
        if stands or not changed.intersection(node.all_input_nodes):
            continue
        args = fx.node.map_arg(node.args, lambda operand: operand.meta["val"])
        mode = next(tensor_value(source) for source in node.all_input_nodes if source in changed and _is_tensor(source))
        with mode.fake_mode:  # type: ignore[attr-defined]  # symbolic values are fake
            node.meta["val"] = node.target(*args, **node.kwargs)  # its options are plain
        changed.add(node)


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta["val"], torch.Tensor) and len(shape_of(node)) > 0
