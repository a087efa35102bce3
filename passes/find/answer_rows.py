"""What an encoder-decoder would keep while it answers: keys and values of the answer's own tokens, and of the encoder.

    own     sdpa(q, k, v, mask)      q, k, v all computed from decoder_input_ids           one row a token of the answer
    cross   sdpa(q, k, v, mask)      q computed from them, k and v from input_ids alone    one row a token of the source

Attentions of the encoder are none of both. Found by structure; an attention of the decoder that is spelled out in
several operators, or has no mask, is a miss.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from ...models.families import ATTENTION_MASK
from ...runtime.cache_names import ranks_name
from ..graph.edit import shape_of
from ..graph.signature import signature_of
from .adapters import Miss
from .attention import Attention, find_attention
from .cache_rows import unrepeated

aten = torch.ops.aten
SOURCE_IDS, ANSWER_IDS = "input_ids", "decoder_input_ids"
_NAMES = (SOURCE_IDS, ATTENTION_MASK, ANSWER_IDS)
_RANK = 4


@dataclass(frozen=True)
class LayerRows:
    """One attention of the decoder.

    Attributes:
        attention: who reads them; key, value: (B, H, U, d) of the answer, (B, H, T, d) of the source.
    """

    attention: Attention
    key: fx.Node
    value: fx.Node


@dataclass(frozen=True)
class AnswerRows:
    """The attentions of a decoder behind an encoder, in graph order.

    Attributes:
        own: over the answer's tokens; cross: over the encoder's.
        inputs: the graph's inputs by name; answered: every value computed from the answer's tokens.
    """

    own: tuple[LayerRows, ...]
    cross: tuple[LayerRows, ...]
    inputs: dict[str, fx.Node]
    answered: frozenset[fx.Node]


def has_encoder(graph_module: fx.GraphModule) -> bool:
    """Whether the graph reads a source and an answer."""
    return any(node.target == ANSWER_IDS for node in graph_module.graph.find_nodes(op="placeholder"))


def find_answer_rows(graph_module: fx.GraphModule) -> AnswerRows | Miss:
    """The decoder's attentions; or why the graph cannot answer token by token."""
    inputs = {str(node.target): node for node in graph_module.graph.find_nodes(op="placeholder")}
    given = [name for name in signature_of(graph_module).input_names if not name.startswith(ranks_name(""))]
    if sorted(given) != sorted(_NAMES):
        return Miss("model", f"its inputs are {', '.join(given)}, not {', '.join(_NAMES)}")
    answered = computed_from(graph_module.graph, inputs[ANSWER_IDS])
    own: list[LayerRows] = []
    cross: list[LayerRows] = []
    for attention in find_attention(graph_module):
        if attention.query not in answered:
            continue
        found = _rows_of(attention)
        if isinstance(found, Miss):
            return found
        (own if found.key in answered else cross).append(found)
    if not own or len(own) != len(cross):
        return Miss("model", f"{len(own)} attentions over the answer, {len(cross)} over the encoder")
    return AnswerRows(tuple(own), tuple(cross), inputs, frozenset(answered))


def _rows_of(attention: Attention) -> LayerRows | Miss:
    if attention.values is None:
        return Miss(attention.node.name, "attention in several operators: choose attn_implementation='sdpa'")
    if attention.mask is None:
        return Miss(attention.node.name, "it has no mask of tensors")
    key, value = unrepeated(attention.keys), unrepeated(attention.values)
    if len(shape_of(key)) != _RANK or len(shape_of(value)) != _RANK:
        return Miss(attention.node.name, "its keys and values are not (batch, heads, tokens, channels)")
    return LayerRows(attention, key, value)


def computed_from(graph: fx.Graph, source: fx.Node) -> set[fx.Node]:
    """A node and all that is computed from its numbers; sizes are none."""
    found = {source}
    for node in graph.nodes:
        if node.target is not aten.sym_size.int and found.intersection(node.all_input_nodes):
            found.add(node)
    return found
