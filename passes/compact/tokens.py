"""Compact: what follows a cut runs on the kept tokens, and answers token by token come back at their places.

    gate = scatter_tokens(to(valid), indices, valid, T, 0)      to(valid)
    h     (B, T, d) ─▶ mul(h, unsqueeze(G, -1))                 gather_tokens(h, indices, 1) ─▶ mul(…, unsqueeze(G, -1))
    mask  (B, 1, T, T) ─▶ where(mask, bias, min)            →   gather_tokens(mask, indices, 2 and 3) ─▶ where
    view(x, [B, T, h, e])                                       view(x, [B, K, h, e])
    output {"logits": y (B, T, C)}                              scatter_tokens(y, indices, valid, T, fill)

K is the size of `indices`, unbacked: it depends on data. What is built from T, like positions, stays built from T above
the cut and is gathered where it is read. The gate itself stays, as `valid`: with it examples that keep less than K.
What a decoder's prefill answers for its cache stays short: the rows of dropped tokens leave the cache.

Sound: see `find/kept_tokens.py`, which proves it operator by operator: each value of the compacted graph is the masked
graph's, gathered along its token axes, and whatever sums over tokens gave the dropped ones a weight of exactly 0. Kept
tokens, and what heads make of them, are the masked graph's up to the rounding of shorter sums. Rows of dropped tokens,
which mean nothing there, hold `fill_of` at outputs.

A gate promises that positions heads read are kept, and that what an earlier cut dropped is not chosen again.

Declines a cut, whole, after which something is not proven; the masked graph remains there.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from ..contract import Pass
from ..find.kept_tokens import KeptTokens, follow_kept
from ..find.selections import SCATTER, Selection, find_selections
from ..find.token_rules import Axes, is_view, rank_of
from ..graph.edit import emit
from ..report import Declined, Outcome
from .gathered import Gathered
from .scatter_back import scatter_back

aten = torch.ops.aten


@dataclass(frozen=True)
class CompactTokens(Pass):
    """Run what follows each hardened token gate on the tokens it keeps."""

    after: ClassVar[tuple[str, ...]] = ("HardenTokenGates",)

    def apply(self, graph_module: fx.GraphModule) -> Outcome:
        """Compact cut by cut, each on what the cuts before it left."""
        fired, declined = [], []
        for selection in find_selections(graph_module):
            kept = follow_kept(graph_module, selection)
            if kept.misses:
                declined += [Declined(miss.where, f"{miss.reason}; the cut stays masked") for miss in kept.misses]
                continue
            _Compaction(graph_module, selection, kept, self.name).run()
            fired.append(selection.name)
        return Outcome(tuple(fired), tuple(declined))


class _Compaction:
    """The edits of one cut that is known to be compactable."""

    def __init__(self, graph_module: fx.GraphModule, selection: Selection, kept: KeptTokens, origin: str) -> None:
        self.graph = graph_module.graph
        self.selection = selection
        self.kept = kept
        self.origin = origin
        self.count = self._count()
        self.gathered = Gathered(self.graph, selection, kept, self.count, origin)

    def run(self) -> None:
        """Each node in order, so that gathers of compacted values find their sizes."""
        self._keep_lengths()
        for node in list(self.graph.nodes):
            for source, want in self.kept.wants.get(node, {}).items():
                node.replace_input_with(source, self.gathered.read(source, want))
            if node in self.kept.axes:
                self._shorten(node, self.kept.axes[node])
            elif node.target is SCATTER and node.args[0] in self.kept.axes:
                self._answer_again(node)
            elif node in self.kept.reads:
                self._read_slot(node)
        scatter_back(self.graph, self.selection, self.kept, self.origin)
        self.selection.gate.replace_all_uses_with(self.selection.kept)
        self.graph.eliminate_dead_code(is_impure_node=lambda n: n.op in ("placeholder", "output"))

    def _count(self) -> fx.Node:
        """K."""
        node = self.selection.indices
        with self.graph.inserting_after(max(node, self.selection.valid)):
            return emit(self.graph, aten.sym_size.int, (node, 1), origin=self.origin, like=node)

    def _keep_lengths(self) -> None:
        """Lengths stay those of all tokens, so that what is built from them stays whole."""
        for node in self.graph.find_nodes(op="call_function", target=aten.sym_size.int):
            source, axis = node.args
            if source in self.kept.axes and axis % rank_of(source) in self.kept.axes[source]:
                node.replace_all_uses_with(self.selection.length)
                self.graph.erase_node(node)

    def _shorten(self, node: fx.Node, axes: Axes) -> None:
        """Give a node the sizes that it has on kept tokens."""
        if node.target is SCATTER:
            node.update_arg(3, self.count)
        elif node.target is aten.slice.Tensor and int(node.args[1]) % rank_of(node) in axes:  # type: ignore[arg-type]  # schema: int
            node.args = (*node.args[:2], 0, sys.maxsize)
        elif (is_view(node) or node.target is aten.expand.default) and isinstance(node.args[1], list | tuple):
            new = self.count if 0 not in axes else -1
            sizes = [new if axis in axes and size != -1 else size for axis, size in enumerate(node.args[1])]
            node.update_arg(1, sizes)
        node.meta["val"] = self._shortened(node.meta["val"], axes)

    def _shortened(self, value: object, axes: Axes) -> object:
        if isinstance(value, list | tuple):
            return type(value)(self._shortened(part, axes) for part in value)
        if not isinstance(value, torch.Tensor) or value.dim() <= max(axes):
            return value
        count = self.count.meta["val"]
        if axes == {0}:  # the rows of all examples
            count = count * self.selection.indices.meta["val"].shape[0]
        shape = [count if axis in axes else size for axis, size in enumerate(value.shape)]
        with value.fake_mode:  # type: ignore[attr-defined]  # symbolic values are fake tensors
            return value.new_empty(shape)

    def _read_slot(self, node: fx.Node) -> None:
        """The slot of a token that is kept: as many kept ones stand before it."""
        with self.graph.inserting_before(node):
            before = self._emit(aten.lt.Tensor, (self.selection.indices, node.args[1]), node)
            node.update_arg(1, self._emit(aten.sum.dim_IntList, (before, [1], True), node))

    def _emit(self, target: object, args: tuple[fx.node.Argument, ...], like: fx.Node) -> fx.Node:
        return emit(self.graph, target, args, origin=self.origin, like=like)  # type: ignore[arg-type]  # an operator

    def _answer_again(self, node: fx.Node) -> None:
        """An earlier cut puts back what it kept: of that, what this cut keeps."""
        with self.graph.inserting_before(node):
            both = self._emit(aten.logical_and.default, (node.args[2], self.selection.valid), node)
        node.update_arg(2, both)
