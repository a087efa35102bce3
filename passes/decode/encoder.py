"""Encode: an encoder-decoder's graph → its encoder, which answers what every layer of the decoder reads of it.

    input_ids, attention_mask, decoder_input_ids          input_ids, attention_mask
    k, v of layer i ─▶ attention over the encoder    →    present_cross.i.key = k, present_cross.i.value = v
    logits                                                present_cross_mask    (B, T), 1 at tokens that are seen

Run once a source. Rows that hardened gates on tokens dropped are masked: the mask is the attention mask times the
gates. `CompactTokens` then takes these rows out of every answer. Without gates the mask is the input itself, and no
answer. Ranks that routers chose for the whole sequence, which `AnswerRanks` made answers, stay.

Sound: nothing is computed otherwise; what only the answer's tokens need is left out.

Refuses an encoder, or a choice of ranks, that reads the answer's tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import fx

from ...errors import PassError, SiteError
from ...models.families import ATTENTION_MASK
from ...runtime.cache_names import CROSS_MASK, cross_key_name, cross_value_name, present_of, ranks_name
from ..contract import Pass
from ..find.adapters import Miss
from ..find.answer_rows import ANSWER_IDS, SOURCE_IDS, AnswerRows, computed_from, find_answer_rows
from ..find.selections import find_selections
from ..graph.edit import answers_of, emit, tensor_value
from ..graph.signature import signature_of
from ..report import Outcome

aten = torch.ops.aten
_RANKS = ranks_name("")


@dataclass(frozen=True)
class ExposeEncoder(Pass):
    """Answer with what the decoder reads of the encoder."""

    after: ClassVar[tuple[str, ...]] = ("FreezeRegularization", "AnswerRanks")

    def requires(self, graph_module: fx.GraphModule) -> None:
        """An encoder-decoder, whose routers read the source alone."""
        rows = required_answer_rows(graph_module)
        for name, node in answers_of(graph_module.graph).items():
            if name.startswith(_RANKS) and node in rows.answered:
                raise PassError(
                    f"{name.removeprefix(_RANKS)} chooses ranks by the answer's tokens, which come one by one.",
                    expected="a choice by the source",
                    remedy="adapt a layer of the encoder too, and keep router_input='first_site'",
                )

    def apply(self, graph_module: fx.GraphModule) -> Outcome:
        """Rewrite the answers, and drop the decoder."""
        graph, rows = graph_module.graph, required_answer_rows(graph_module)
        with graph.inserting_before(graph.output_node()):
            mask = self._mask(graph_module, rows)
        answers = {present_of(CROSS_MASK): mask} if mask.op != "placeholder" else {}
        for layer, row in enumerate(rows.cross):
            answers |= {present_of(cross_key_name(layer)): row.key, present_of(cross_value_name(layer)): row.value}
        answers |= {name: node for name, node in answers_of(graph).items() if name.startswith(_RANKS)}
        graph.output_node().args = (answers,)
        drop_input(graph, rows.inputs[ANSWER_IDS], {0: (rows.inputs[SOURCE_IDS], 0)}, origin=self.name)
        graph_module.delete_all_unused_submodules()
        signature = signature_of(graph_module)
        kept = tuple(spec for spec in signature.inputs if spec.name != ANSWER_IDS)
        graph_module.meta["signature"] = replace(signature, inputs=kept, outputs=tuple(answers), answer_type=None)
        return Outcome(tuple(answers))

    def _mask(self, graph_module: fx.GraphModule, rows: AnswerRows) -> fx.Node:
        """The source's mask, 0 also where a gate in front of the decoder dropped a token."""
        graph, mask = graph_module.graph, rows.inputs[ATTENTION_MASK]
        for selection in find_selections(graph_module):
            if rows.cross[0].key in computed_from(graph, selection.gate):
                number = emit(
                    graph, aten.to.dtype, (selection.gate, tensor_value(mask).dtype), origin=self.name, like=mask
                )
                mask = emit(graph, aten.mul.Tensor, (mask, number), origin=self.name, like=mask)
        return mask


def required_answer_rows(graph_module: fx.GraphModule) -> AnswerRows:
    """The decoder's attentions.

    Raises:
        SiteError: the graph cannot answer token by token.
    """
    rows = find_answer_rows(graph_module)
    if isinstance(rows, Miss):
        raise SiteError(
            f"the decoder behind the encoder has no cache: {rows.where}: {rows.reason}.",
            expected="an encoder-decoder of transformers with input_ids, attention_mask and decoder_input_ids",
            remedy="load it with attn_implementation='sdpa' and pass these three as example_inputs",
        )
    return rows


def drop_input(graph: fx.Graph, gone: fx.Node, sizes: dict[int, tuple[fx.Node, int]], *, origin: str) -> None:
    """Take an input out of a graph that needs no more of it than sizes, which other values have too.

    Args:
        sizes: axis of the input → (a value, its axis of the same size).

    Raises:
        PassError: its numbers are needed.
    """
    for node in [user for user in gone.users if user.target is aten.sym_size.int]:
        value, axis = sizes.get(int(node.args[1]), (None, 0))  # type: ignore[arg-type]  # schema: int
        if value is not None:
            with graph.inserting_before(node):
                node.replace_all_uses_with(emit(graph, aten.sym_size.int, (value, axis), origin=origin, like=value))
            graph.erase_node(node)
    graph.eliminate_dead_code(is_impure_node=lambda n: n.op in ("placeholder", "output"))
    if gone.users:
        reader = next(iter(gone.users))
        raise PassError(f"{reader.name} reads {gone.target}, which is not known there.", given=str(reader.target))
    graph.erase_node(gone)
