"""Cuts: the states between transformer layers through which everything that later layers know of a token passes.

    embeddings ─▶ [cut 0] ─▶ attention 1 ─▶ … ─▶ [cut 1] ─▶ attention 2 ─▶ … ─▶ [cut 2] ─▶ cross-attention of a decoder

Found by structure. Self-attention of the first stack counts the layers. A cut after layer ℓ is the last value
(B, T, d) before attention ℓ + 1 that separates the graph: of all values that carry the tokens' content, it alone is
read on both sides. That is the norm's output in a post-norm layer and the residual sum in a pre-norm one.

A miss: causal attention by a flag or by places in a row (by explicit positions it may lose tokens), no attention, no
such value, an attention mask that says nothing of these tokens (several sequences an example, samples of sound).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import fx

from ...models.families import ATTENTION_MASK
from ...models.token_gate import TokenGate
from ..graph.edit import shape_of, tensor_value
from .adapters import Miss
from .attention import Attention, find_attention
from .token_rules import size_key

aten = torch.ops.aten
_STATE_AXES = 3


@dataclass(frozen=True)
class Cut:
    """A place between layers.

    Attributes:
        layer: how many layers are done: 0 after the embeddings, 1 after the first layer.
        state: (B, T, d); mask: the attention mask input (B, T), None where the model has none.
    """

    layer: int
    state: fx.Node
    mask: fx.Node | None


def find_cuts(graph_module: fx.GraphModule) -> tuple[Cut, ...] | Miss:
    """Every cut after which something still attends to the tokens, in graph order; or why there is none."""
    content = _content(graph_module)
    attentions = [item for item in find_attention(graph_module) if item.keys in content and _spans(item)]
    own = [item for item in attentions if _spans(item)[0] == _spans(item)[1] == _spans(attentions[0])[1]]
    if not own:
        return Miss("model", "no attention in which tokens of one sequence attend to each other")
    if own[0].causal:
        return Miss(own[0].node.name, f"causal attention ({own[0].causal}): only encoders drop tokens between layers")
    tokens = _spans(own[0])[1]
    readers = [*own, *[item for item in attentions if item not in own and _spans(item)[1] == tokens][:1]]
    single = _separators(graph_module.graph, content, tokens)
    states = list(_states(graph_module.graph, [item.node for item in readers], single))
    if not states:
        return Miss(own[0].node.name, "no single value (B, T, d) separates any two layers")
    mask = _mask(graph_module.graph)
    if mask is not None and _keys(mask) != _keys(states[0][1])[:2]:
        return Miss(str(mask.target), f"it does not say which tokens of {states[0][1].name} are real: another shape")
    return tuple(Cut(layer, state, mask) for layer, state in states)


def _states(graph: fx.Graph, readers: list[fx.Node], single: list[fx.Node]) -> Iterable[tuple[int, fx.Node]]:
    """(layers done, the last separating value) before each attention, where it stands after the attention before."""
    position = {node: index for index, node in enumerate(graph.nodes)}
    previous = -1
    for layer, reader in enumerate(readers):
        before = [node for node in single if previous < position[node] < position[reader]]
        if before:
            yield layer, before[-1]
        previous = position[reader]


def _mask(graph: fx.Graph) -> fx.Node | None:
    node: fx.Node
    for node in graph.find_nodes(op="placeholder"):
        if node.target == ATTENTION_MASK:
            return node
    return None


def _spans(attention: Attention) -> tuple[object, ...]:
    """(queries, keys): the sizes of the two axes; () where the softmax has no axis of queries before its keys."""
    if attention.is_fused:
        return _keys(attention.query)[-2], _keys(attention.keys)[attention.key_axis]
    return _keys(attention.keys)[attention.key_axis - 1 : attention.key_axis + 1] if attention.key_axis > 1 else ()


def _keys(node: fx.Node) -> tuple[object, ...]:
    return tuple(size_key(size) for size in shape_of(node))


def _content(graph_module: fx.GraphModule) -> set[fx.Node]:
    """Values that know what the tokens are: looked up by an input, or computed from a real-valued one.

    A gate on tokens says which there are, like a mask, so that cuts beyond one in a gated graph are found too.
    """
    inputs: set[fx.Node] = set()
    found: set[fx.Node] = set()
    for node in graph_module.graph.nodes:
        sources = node.all_input_nodes
        if node.op == "placeholder":
            real = tensor_value(node).is_floating_point() and node.target != ATTENTION_MASK
            (found if real else inputs).add(node)
        elif node.target is aten.sym_size.int or _is_gate(graph_module, node):
            continue
        elif any(source in found for source in sources):
            found.add(node)
        elif any(source in inputs for source in sources):
            (found if node.target is aten.embedding.default else inputs).add(node)
    return found


def _is_gate(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(graph_module.get_submodule(str(node.target)), TokenGate)


def _separators(graph: fx.Graph, content: set[fx.Node], tokens: object) -> list[fx.Node]:
    """Values (B, T, d) that alone, of all that carry the tokens' content, are read later."""
    last_read = {}
    for index, node in enumerate(graph.nodes):
        for source in node.all_input_nodes if node.target is not aten.sym_size.int else ():
            last_read[source] = index
    live: set[fx.Node] = set()
    found = []
    for index, node in enumerate(graph.nodes):
        live = {value for value in live if last_read.get(value, -1) > index}
        if node in content and node.op != "output" and _carries(node, tokens) and last_read.get(node, -1) > index:
            live.add(node)
        if live == {node} and _is_state(node, tokens):
            found.append(node)
    return found


def _is_state(node: fx.Node, tokens: object) -> bool:
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return False
    return value.dim() == _STATE_AXES and _keys(node)[1] == tokens


def _carries(node: fx.Node, tokens: object) -> bool:
    """Whether an axis of the node's value, or of a part of it, counts tokens."""
    values = node.meta.get("val")
    parts = values if isinstance(values, (tuple, list)) else [values]
    sizes = {size_key(size) for part in parts if isinstance(part, torch.Tensor) for size in part.shape}
    if isinstance(tokens, int):
        return tokens in sizes
    symbols: set[object] = tokens.free_symbols  # type: ignore[attr-defined]  # no number: an expression
    return any(symbols <= getattr(size, "free_symbols", set()) for size in sizes)
