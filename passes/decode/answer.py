"""Answer: an encoder-decoder's graph → its decoder, which reads two caches and appends to one of them.

    decoder_input_ids (B, T), T new tokens
    k, v of layer i over the answer (B, H, T, d)          cat([past_key_values.i.key, k], 2) (B, H, S + T, d)
    k, v of layer i over the encoder                 →    past_cross.i.key, past_cross.i.value, inputs
    attention_mask                                        past_cross_mask
    places in the answer, from 0                          from S (`places.py`)
    logits                                                logits, and every cat as present.…

The first call has the tokens that answers start with and a cache of no rows. A row of the batch that ended may go on
with any token: nobody reads it.

Sound: an attention reads its keys and values in any order, so those of earlier tokens may stand in front, and the
encoder's need not be computed twice. Everything else works token by token.

Refuses a graph in which gates on tokens still choose (`OpenTokenChoices` takes them out), and masks or position biases
that are made otherwise than place by place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from ...models.families import ATTENTION_MASK
from ...runtime.cache_names import (
    CROSS_MASK,
    LOGITS,
    CacheLayout,
    cross_key_name,
    cross_value_name,
    key_name,
    present_of,
    value_name,
)
from ..contract import Pass
from ..find.answer_rows import ANSWER_IDS, SOURCE_IDS, LayerRows
from ..graph.edit import answers_of, emit
from ..report import Outcome
from .cache_inputs import CacheInputs
from .encoder import drop_input, required_answer_rows
from .places import count_on, grow

aten = torch.ops.aten


@dataclass(frozen=True)
class ReadAnswer(Pass):
    """Read the answer so far, and the encoder, from caches."""

    after: ClassVar[tuple[str, ...]] = ("FreezeRegularization",)

    def requires(self, graph_module: fx.GraphModule) -> None:
        """An encoder-decoder."""
        required_answer_rows(graph_module)

    def apply(self, graph_module: fx.GraphModule) -> Outcome:
        """Rewrite every attention of the decoder, and the answers."""
        graph, rows = graph_module.graph, required_answer_rows(graph_module)
        tokens = rows.inputs[ANSWER_IDS]
        inputs = CacheInputs(graph_module, tokens, 1, self.name)
        answers, pasts = {LOGITS: answers_of(graph)[LOGITS]}, []
        for layer, row in enumerate(rows.own):
            for name, states in ((key_name(layer), row.key), (value_name(layer), row.value)):
                past = inputs.add(name, states, 2)
                answers[present_of(name)] = self._append(graph, past, states)
                pasts.append(past)
        for layer, row in enumerate(rows.cross):
            self._read_encoder(inputs, layer, row)
        mask = inputs.add(CROSS_MASK, rows.inputs[ATTENTION_MASK])
        rows.inputs[ATTENTION_MASK].replace_all_uses_with(mask)
        with graph.inserting_after(graph.find_nodes(op="placeholder")[-1]):
            past = emit(graph, aten.sym_size.int, (pasts[0], 2), origin=self.name, like=pasts[0])
        whole = [node for name, node in answers.items() if name != LOGITS]
        grow(graph_module, [*count_on(graph_module, tokens, past, origin=self.name), *whole])
        graph.output_node().args = (answers,)
        drop_input(graph, rows.inputs[SOURCE_IDS], {0: (mask, 0), 1: (mask, 1)}, origin=self.name)
        graph.erase_node(rows.inputs[ATTENTION_MASK])
        graph_module.delete_all_unused_submodules()
        inputs.sign(tuple(answers), without=(SOURCE_IDS, ATTENTION_MASK))
        graph_module.meta["cache"] = CacheLayout((0,) * len(rows.own))
        return Outcome(tuple(answers))

    def _append(self, graph: fx.Graph, past: fx.Node, states: fx.Node) -> fx.Node:
        users = list(states.users)
        with graph.inserting_after(states):
            whole = emit(graph, aten.cat.default, ([past, states], 2), origin=self.name, like=states)
        for user in users:
            if user.target is not aten.sym_size.int:
                user.replace_input_with(states, whole)
        return whole

    def _read_encoder(self, inputs: CacheInputs, layer: int, row: LayerRows) -> None:
        for name, states in ((cross_key_name(layer), row.key), (cross_value_name(layer), row.value)):
            states.replace_all_uses_with(inputs.add(name, states))
