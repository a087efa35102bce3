"""Prefill: a decoder's graph over whole texts → one that answers with the next token's logits and the cache.

    positions = clamp_min(cumsum(mask) - 1, 0)          position_ids                                 an input
    logits = linear(h (B, T, d), W)                →    logits = linear(gather_tokens(h, last, 1), W)      (B, 1, V)
    k, v of layer i ─▶ attention                        present.i.key = k, present.i.value = v
                                                        present_positions.g, present_mask.g     (B, T), g > 0

Rows of group 0 are the prompt's own: their positions and mask are the inputs, which nobody needs to be told again.
After a cut of hardened gates on tokens, the rows of dropped tokens are masked: present_mask is the attention mask
times the gates. `CompactTokens` then takes these rows out of every answer of the cache.

Sound: everything from the last linear layer on works token by token, so reading one token commutes with it. Nothing
else of the graph changes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import fx

from ...errors import SiteError
from ...models.families import ATTENTION_MASK
from ...runtime.cache_names import LOGITS, CacheLayout, key_name, mask_name, positions_name, present_of, value_name
from ..contract import Pass
from ..find.adapters import Miss
from ..find.cache_rows import CacheRows, find_cache_rows
from ..find.last_token import emit_last_token
from ..find.selections import GATHER, find_selections
from ..find.token_rules import rule_of
from ..graph.capture_decoder import POSITIONS
from ..graph.edit import answers_of, emit, shape_of, stamp, tensor_value
from ..graph.signature import InputSpec, signature_of
from ..report import Outcome

aten = torch.ops.aten
_TOKENS = frozenset({1})


@dataclass(frozen=True)
class ExposeCache(Pass):
    """Answer with the cache, and with the logits of the last real token alone."""

    after: ClassVar[tuple[str, ...]] = ("FreezeRegularization",)

    def requires(self, graph_module: fx.GraphModule) -> None:
        """A decoder of explicit positions."""
        required_rows(graph_module)

    def apply(self, graph_module: fx.GraphModule) -> Outcome:
        """Rewrite inputs and answers."""
        rows = required_rows(graph_module)
        positions = positions_input(graph_module, rows[0], self.name)
        self._answer_last(graph_module, positions)
        graph, output = graph_module.graph, graph_module.graph.output_node()
        with graph.inserting_before(output):
            answers = {LOGITS: answers_of(graph)[LOGITS]}
            answers |= self._rows(graph_module, positions, rows)
        output.args = (answers,)
        graph.eliminate_dead_code(is_impure_node=lambda n: n.op in ("placeholder", "output"))
        signature = signature_of(graph_module)
        graph_module.meta["signature"] = replace(signature, outputs=tuple(answers), answer_type=None)
        return Outcome((POSITIONS, *answers))

    def _answer_last(self, graph_module: fx.GraphModule, positions: fx.Node) -> None:
        graph = graph_module.graph
        reader, state = _head(graph)
        inputs = {str(node.target): node for node in graph.find_nodes(op="placeholder")}
        with graph.inserting_after(graph.find_nodes(op="placeholder")[-1]):
            place = graph.create_node("call_function", aten.argmax.default, ())
        with graph.inserting_before(place):
            last = emit_last_token(graph, positions, inputs[ATTENTION_MASK], origin=self.name)
        graph.erase_node(place)
        with graph.inserting_after(state):
            one = emit(graph, GATHER, (state, last, 1), origin=self.name, like=state)
        reader.replace_input_with(state, one)
        _shorten_from(reader)

    def _rows(
        self, graph_module: fx.GraphModule, positions: fx.Node, rows: tuple[CacheRows, ...]
    ) -> dict[str, fx.Node]:
        """The cache's answers, by name."""
        layout, gates = groups_of(graph_module, rows)
        answers: dict[str, fx.Node] = {}
        for layer, row in enumerate(rows):
            answers[present_of(key_name(layer))] = row.key
            answers[present_of(value_name(layer))] = row.value
        mask = rows[0].visible.args[2]
        for group in range(1, layout.group_count):
            for name, value in ((positions_name(group), positions), (mask_name(group), mask)):
                answers[present_of(name)] = self._gated(graph_module.graph, value, gates[:group])  # type: ignore[arg-type]  # a node
        graph_module.meta["cache"] = layout
        return answers

    def _gated(self, graph: fx.Graph, value: fx.Node, gates: list[fx.Node]) -> fx.Node:
        """Rows' numbers, 0 where a gate dropped them."""
        dtype = tensor_value(value).dtype
        for gate in gates:
            number = emit(graph, aten.to.dtype, (gate, dtype), origin=self.name, like=value)
            value = emit(graph, aten.mul.Tensor, (value, number), origin=self.name, like=value)
        return value


def required_rows(graph_module: fx.GraphModule) -> tuple[CacheRows, ...]:
    """The parts of the cache.

    Raises:
        SiteError: the graph has none.
    """
    rows = find_cache_rows(graph_module)
    if isinstance(rows, Miss):
        raise SiteError(
            "The model cannot generate: its graph has no cache.",
            given=f"{rows.where}: {rows.reason}",
            expected="a decoder of transformers captured with input_ids and attention_mask",
            remedy="load it with attn_implementation='sdpa' and pass both inputs as example_inputs",
        )
    return rows


def positions_input(graph_module: fx.GraphModule, rows: CacheRows, origin: str) -> fx.Node:
    """The positions as an input of the graph: the one it has, or a new one in place of what computes them."""
    positions, graph = rows.visible.args[0], graph_module.graph
    if not isinstance(positions, fx.Node) or positions.op == "placeholder":
        return positions  # type: ignore[return-value]  # visible_keys reads nodes
    last = graph.find_nodes(op="placeholder")[-1]
    with graph.inserting_after(last):
        made = stamp(graph.placeholder(POSITIONS), origin=origin, like=positions)
    made.meta["val"] = positions.meta["val"]
    positions.replace_all_uses_with(made)
    signature = signature_of(graph_module)
    spec = InputSpec(POSITIONS, torch.int64, signature.inputs[0].axes)
    graph_module.meta["signature"] = replace(signature, inputs=(*signature.inputs, spec))
    return made


def groups_of(graph_module: fx.GraphModule, rows: tuple[CacheRows, ...]) -> tuple[CacheLayout, list[fx.Node]]:
    """Which layers keep the same rows, and the gates between the groups, in order."""
    gates = [selection.gate for selection in find_selections(graph_module)]
    reached = [_computed_from(graph_module.graph, gate) for gate in gates]
    return CacheLayout(tuple(sum(row.key in nodes for nodes in reached) for row in rows)), gates


def _computed_from(graph: fx.Graph, source: fx.Node) -> set[fx.Node]:
    found = {source}
    for node in graph.nodes:
        if found.intersection(node.all_input_nodes):
            found.add(node)
    return found


def _head(graph: fx.Graph) -> tuple[fx.Node, fx.Node]:
    """(what reads one state per token, the state): the linear layer in front of the logits, or else the answer."""
    logits = node = answers_of(graph)[LOGITS]
    while node.target is not aten.linear.default:
        rule, sources = rule_of(node), [n for n in node.all_input_nodes if _counts_tokens(n, logits)]
        if rule is None or len(sources) != 1 or rule(node, sources[0], _TOKENS) != _TOKENS:
            return graph.output_node(), logits
        node = sources[0]
    return node, node.all_input_nodes[0]


def _counts_tokens(node: fx.Node, logits: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dim() == tensor_value(logits).dim() and node.op != "get_attr"


def _shorten_from(reader: fx.Node) -> None:
    """Say of the head's values that they hold one token a row."""
    pending = [reader]
    while pending:
        node = pending.pop()
        if node.op == "output":
            continue
        value = tensor_value(node)
        shape = [*shape_of(node)]
        shape[1] = 1
        with value.fake_mode:  # type: ignore[attr-defined]  # symbolic values are fake tensors
            node.meta["val"] = value.new_empty(shape)
        pending += list(node.users)
