"""Decode: a decoder's graph over whole texts → one that reads a cache and appends to it, for one new token or several.

    k, v of layer i (B, H, T, d) ─▶ attention      cat([past_key_values.i.key, k], 2) (B, H, S + T, d) ─▶ attention
    visible_keys(p, p, mask, w)                 →  visible_keys(p, cat([past_positions.g, p]), cat([past_mask.g, …]))
    slopes · keys (`graph/linear_bias.py`)         slopes · cat([past_positions.g, p])
    logits                                         logits, and every cat as present.…

Sound: an attention reads its keys and values in any order, so those of earlier tokens may stand in front; everything
else works token by token. Sizes of keys and values are followed from the cache to the attention and lengthened; sizes
that count the new tokens stay.

Refuses a graph in which gates on tokens still choose (`OpenTokenChoices` takes them out), and keys that reach their
attention through operators that are not known to leave rows apart.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from ...errors import PassError
from ...models.families import ATTENTION_MASK
from ...runtime.cache_names import LOGITS, CacheLayout, key_name, mask_name, positions_name, present_of, value_name
from ..contract import Pass
from ..find.attention import is_fused
from ..find.cache_rows import CacheRows, key_positions
from ..find.token_rules import Axes, is_view, rule_of
from ..graph.edit import answers_of, copy_value, emit, tensor_value
from ..report import Outcome
from .cache_inputs import CacheInputs
from .prefill import positions_input, required_rows

aten = torch.ops.aten
_ROW, _TOKENS, _LAST = frozenset({1}), frozenset({2}), frozenset({3})


@dataclass(frozen=True)
class ReadCache(Pass):
    """Read a cache in front of every attention.

    Attributes:
        layout: which layers keep the same rows.
    """

    layout: CacheLayout

    after: ClassVar[tuple[str, ...]] = ("FreezeRegularization",)

    def requires(self, graph_module: fx.GraphModule) -> None:
        """A decoder of explicit positions with the layout's layers."""
        rows = required_rows(graph_module)
        if len(rows) != len(self.layout.groups):
            raise PassError(f"The layout has {len(self.layout.groups)} layers, the graph {len(rows)} attentions.")

    def apply(self, graph_module: fx.GraphModule) -> Outcome:
        """Rewrite every attention, and the answers."""
        rows = required_rows(graph_module)
        positions = positions_input(graph_module, rows[0], self.name)
        inputs = {str(node.target): node for node in graph_module.graph.find_nodes(op="placeholder")}
        new = [(positions, inputs[ATTENTION_MASK])] * self.layout.group_count
        answers = Reading(graph_module, self.layout, rows, new, self.name).run()
        return Outcome(tuple(answers))


class Reading:
    """The edits of one graph.

    Args:
        layout: which layers keep the same rows; rows: every attention's part of the cache.
        new: positions and mask of the new rows, (B, T) both, by group.
    """

    def __init__(
        self,
        graph_module: fx.GraphModule,
        layout: CacheLayout,
        rows: Sequence[CacheRows],
        new: Sequence[tuple[fx.Node, fx.Node]],
        origin: str,
    ) -> None:
        self.graph_module, self.graph = graph_module, graph_module.graph
        self.layout, self.rows, self.new, self.origin = layout, rows, new, origin
        self.inputs = CacheInputs(graph_module, new[0][0], layout.group_count, origin)
        self.key_positions = key_positions(rows)
        self.axes = _row_axes(graph_module, rows)
        self.grown: dict[fx.Node, int] = {}

    def run(self) -> dict[str, fx.Node]:
        """Every layer; the answers by name."""
        cached: dict[str, fx.Node] = {}
        for layer, row in enumerate(self.rows):
            for name, states in ((key_name(layer), row.key), (value_name(layer), row.value)):
                cached[present_of(name)] = self._lengthen(name, states, self.layout.groups[layer])
        whole = [self._whole_group(group) for group in range(self.layout.group_count)]
        masks: dict[tuple[fx.Node, int], fx.Node] = {}
        for row, group in zip(self.rows, self.layout.groups, strict=True):
            mask = self._mask_for(row.attention.mask, group, whole[group], masks)  # type: ignore[arg-type]  # has one
            row.attention.holder.replace_input_with(row.attention.mask, mask)  # type: ignore[arg-type]
        self._grow()
        for group, (positions, mask) in enumerate(whole):
            cached |= {present_of(positions_name(group)): positions, present_of(mask_name(group)): mask}
        return self._answer(cached)

    def _lengthen(self, name: str, states: fx.Node, group: int) -> fx.Node:
        past = self.inputs.add(name, states, 2, group)
        users = list(states.users)
        with self.graph.inserting_after(max(states, past)):
            whole = emit(self.graph, aten.cat.default, ([past, states], 2), origin=self.origin, like=states)
        for user in users:
            if user.target is not aten.sym_size.int:
                user.replace_input_with(states, whole)
        self.grown[whole] = 2
        return whole

    def _whole_group(self, group: int) -> tuple[fx.Node, fx.Node]:
        """(positions, mask) of a group's rows and the new ones, (B, S + T)."""
        names = (positions_name(group), mask_name(group))
        pasts = [self.inputs.add(name, new, 1, group) for name, new in zip(names, self.new[group], strict=True)]
        joined = []
        for past, new in zip(pasts, self.new[group], strict=True):
            last = self.graph.find_nodes(op="placeholder")[-1]
            with self.graph.inserting_after(max(last, new)):
                joined.append(emit(self.graph, aten.cat.default, ([past, new], 1), origin=self.origin, like=new))
        return joined[0], joined[1]

    def _mask_for(
        self, mask: fx.Node, group: int, whole: tuple[fx.Node, fx.Node], made: dict[tuple[fx.Node, int], fx.Node]
    ) -> fx.Node:
        """The mask again, for the rows of a group: `visible_keys` of them, and what is made of its answer."""
        if (mask, group) in made:
            return made[mask, group]
        if mask in self.key_positions:
            self.grown[whole[0]] = 1
            return whole[0]
        if mask in (row.visible for row in self.rows):
            window = mask.args[3]
            with self.graph.inserting_after(max(mask, *whole)):
                arguments = (mask.args[0], *whole, window)
                visible = emit(self.graph, mask.target, arguments, origin=self.origin, like=mask)  # type: ignore[arg-type]
            self.grown[visible] = 3
            made[mask, group] = visible
            return visible
        counting = [source for source in mask.all_input_nodes if source in self.axes]
        sources = {source: self._mask_for(source, group, whole, made) for source in counting}
        with self.graph.inserting_after(max(mask, *sources.values())):
            made[mask, group] = copy_value(self.graph, mask, sources)
        self.axes[made[mask, group]] = self.axes[mask]
        return made[mask, group]

    def _grow(self) -> None:
        """Give what is made of keys, values and masks the sizes that it has with the cache, up to the attentions."""
        for node in self.graph.nodes:
            carriers = [source for source in node.all_input_nodes if source in self.grown]
            if carriers and node in self.axes and node not in self.grown:
                self._grow_one(node, carriers[0])

    def _grow_one(self, node: fx.Node, source: fx.Node) -> None:
        (axis,), before = self.axes[node], self.grown[source]
        if node.target is aten.slice.Tensor:
            node.args = (*node.args[:2], 0, sys.maxsize)
        elif (is_view(node) or node.target is aten.expand.default) and isinstance(node.args[1], list | tuple):
            with self.graph.inserting_before(node):
                count = emit(self.graph, aten.sym_size.int, (source, before), origin=self.origin, like=source)
            sizes = [count if place == axis and given != -1 else given for place, given in enumerate(node.args[1])]
            node.update_arg(1, sizes)
        value, size = tensor_value(node), tensor_value(source).shape[before]
        shape = [size if place == axis else given for place, given in enumerate(value.shape)]
        with value.fake_mode:  # type: ignore[attr-defined]
            node.meta["val"] = value.new_empty(shape)
        self.grown[node] = axis

    def _answer(self, cached: dict[str, fx.Node]) -> dict[str, fx.Node]:
        answers = {LOGITS: answers_of(self.graph)[LOGITS], **cached}
        self.graph.output_node().args = (answers,)
        self.graph.eliminate_dead_code(is_impure_node=lambda n: n.op in ("placeholder", "output"))
        self.graph_module.meta["cache"] = self.layout
        self.inputs.sign(tuple(answers))
        return answers


def _row_axes(graph_module: fx.GraphModule, rows: Sequence[CacheRows]) -> dict[fx.Node, Axes]:
    """Value → the axis that counts rows of the cache, for all that stands between keys, values, masks and attentions.

    Raises:
        PassError: an operator there that may mix rows.
    """
    found: dict[fx.Node, Axes] = {}
    for row in rows:
        found |= {row.key: _TOKENS, row.value: _TOKENS, row.visible: _LAST}
    found |= dict.fromkeys(key_positions(rows), _ROW)
    for node in graph_module.graph.nodes:
        carriers = [source for source in node.all_input_nodes if source in found]
        ends = node.op == "output" or node.target is aten.sym_size.int or is_fused(graph_module, node)
        if node in found or not carriers or ends:
            continue
        rule = rule_of(node)
        axes = "it is not known" if rule is None else rule(node, carriers[0], found[carriers[0]])
        if isinstance(axes, str) or len(axes) != 1:
            raise PassError(f"{node.name} stands between a cache and its attention: {axes}.")
        found[node] = axes
    return found
