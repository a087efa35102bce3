"""Linear biases (ALiBi, Press et al. 2021): attention that counts places of a row → attention by explicit positions.

    places = mul(sub(cumsum(attention_mask), 1), …)             positions = clamp_min(sub(cumsum(attention_mask), 1), 0)
                                                                keys      = clone(positions)
    bias   = slopes · places (B·H, 1, T)                        bias      = view(slopes · keys, (B, H, 1, T))
    s      = view(baddbmm(bias, q, kᵀ), (B, H, T, T))      →    visible   = visible_keys(positions, keys, mask, 0)
    softmax(add(s, causal mask)) ─▶ dropout ─▶ bmm(·, v)        sdpa(q, k, v, where(visible, bias, min))

What is computed from `keys` counts keys, not queries, so that a cache may lengthen it and a cut may gather it. Passes
then know all they need: bias and visibility stand at positions of the text, whatever rows are left.

Sound: a softmax of q·k plus a bias is what the fused operator computes, up to rounding (the model may take its softmax
in float32). Real tokens stand at the same places by either count, and padding is seen by nobody. That the causal mask
shuts out later keys and nothing else is what `capture_decoder.py` tries on the example.

Declines attentions of any other form, all of them where one is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx, nn

from ...models.families import ATTENTION_MASK
from ...models.regularization import AttentionDropout
from ..contract import Pass
from ..find.attention import Attention, find_attention
from ..find.last_token import VISIBLE
from ..report import Declined, Outcome
from .edit import emit, emit_module, own_module, shape_of, tensor_value

aten = torch.ops.aten
_SDPA = aten.scaled_dot_product_attention.default
_VIEWS = (aten.view.default, aten.reshape.default)
_COPIES = (*_VIEWS, aten.unsqueeze.default, aten.slice.Tensor, aten.to.dtype, aten.to.device, aten.contiguous.default)
_HEADS = 4  # axes of (batch, heads, tokens, channels)
_ORIGINAL = "baddbmm of a bias made of the attention mask, a causal mask, softmax and bmm"


@dataclass(frozen=True)
class _Spelled:
    """One attention in several operators.

    Attributes:
        query, key, value: (B, H, T, d); bias: (B·H, 1, T); scale: of q·k; dropout: its probability.
        places: what stands for positions in the bias, (B, T); answer: (B, H, T, d), the last operator.
    """

    query: fx.Node
    key: fx.Node
    value: fx.Node
    bias: fx.Node
    scale: float
    dropout: float
    places: fx.Node
    answer: fx.Node


@dataclass(frozen=True)
class PlaceLinearBias(Pass):
    """Let attention with a linear bias read explicit positions, in one operator."""

    def apply(self, graph_module: fx.GraphModule) -> Outcome:
        """Rewrite every attention, or none."""
        mask, attentions = _attention_mask(graph_module.graph), find_attention(graph_module)
        if mask is None or not attentions:
            return Outcome(declined=(Declined("model", f"it has no {ATTENTION_MASK}, or no attention"),))
        found = []
        for item in attentions:
            match = _spelled(graph_module, item, mask)
            if match is None:
                return Outcome(declined=(Declined(item.node.name, f"it is not {_ORIGINAL}"),))
            found.append(match)
        _Placing(graph_module, mask, self.name).run(found)
        return Outcome(tuple(item.node.name for item in attentions))


class _Placing:
    """The edits of one graph."""

    def __init__(self, graph_module: fx.GraphModule, mask: fx.Node, origin: str) -> None:
        self.graph_module, self.graph, self.origin = graph_module, graph_module.graph, origin
        self.mask = mask
        self.masks: dict[fx.Node, fx.Node] = {}

    def run(self, found: list[_Spelled]) -> None:
        """Positions first, then attention by attention."""
        with self.graph.inserting_after(self.graph.find_nodes(op="placeholder")[-1]):
            place = self.graph.create_node("call_function", aten.clone.default, ())
        with self.graph.inserting_before(place):
            keys, visible = self._positions()
        self.graph.erase_node(place)
        for places in dict.fromkeys(item.places for item in found):
            places.replace_all_uses_with(keys)
        for item in found:
            self._attend(item, visible)
        self.graph.eliminate_dead_code(is_impure_node=lambda n: n.op in ("placeholder", "output"))
        self.graph_module.delete_all_unused_submodules()

    def _positions(self) -> tuple[fx.Node, fx.Node]:
        """(positions of keys (B, T), what is visible (B, 1, T, T))."""
        whole = self._emit(aten.to.dtype, (self.mask, torch.int64), self.mask)
        count = self._emit(aten.cumsum.default, (whole, -1), self.mask)
        positions = self._emit(
            aten.clamp_min.default, (self._emit(aten.sub.Tensor, (count, 1), self.mask), 0), self.mask
        )
        keys = self._emit(aten.clone.default, (positions,), self.mask)
        return keys, self._emit(VISIBLE, (positions, keys, self.mask, 0), self.mask)

    def _attend(self, item: _Spelled, visible: fx.Node) -> None:
        answer = item.answer
        with self.graph.inserting_before(answer):
            arguments = (item.query, item.key, item.value, self._mask(item, visible))
            if item.dropout > 0:
                name = f"attention_dropout_{answer.name}"
                own_module(self.graph_module, name, AttentionDropout(item.dropout))
                shape, dtype = shape_of(answer), tensor_value(answer).dtype
                made = emit_module(
                    self.graph, name, arguments, shape=shape, dtype=dtype, origin=self.origin, like=answer
                )
            else:
                made = self._emit(_SDPA, arguments, answer)
        made.kwargs = {"scale": item.scale}
        answer.replace_all_uses_with(made)

    def _mask(self, item: _Spelled, visible: fx.Node) -> fx.Node:
        """What is added to scores, (B, H, T, T), made once for all layers of one bias."""
        if item.bias not in self.masks:
            batch, heads = shape_of(item.query)[:2]
            value = tensor_value(item.bias)
            with self.graph.inserting_before(item.answer):
                size = batch if isinstance(batch, int) else self._emit(aten.sym_size.int, (item.query, 0), item.bias)
                bias = self._emit(aten.view.default, (item.bias, [size, heads, 1, -1]), item.bias)
                lowest = torch.finfo(value.dtype).min
                self.masks[item.bias] = self._emit(aten.where.ScalarOther, (visible, bias, lowest), item.bias)
        return self.masks[item.bias]

    def _emit(self, target: object, args: tuple[fx.node.Argument, ...], like: fx.Node) -> fx.Node:
        return emit(self.graph, target, args, origin=self.origin, like=like)  # type: ignore[arg-type]  # an operator


def _spelled(graph_module: fx.GraphModule, attention: Attention, mask: fx.Node) -> _Spelled | None:
    """The attention's parts; None where it has another form."""
    product = _through(attention.scores, _VIEWS)
    if product is None or product.target is not aten.baddbmm.default or product.kwargs.get("beta", 1) != 1:
        return None
    if attention.mask is None or not attention.causal or not _takes_last_axis(attention):
        return None
    bias, left, right = (node for node in product.args[:3] if isinstance(node, fx.Node))
    turned = right.all_input_nodes[0] if right.target is aten.transpose.int and _turns_last(right) else right
    ending = _ending(graph_module, attention.node)
    places = _places(bias, mask)
    if turned is right or ending is None or places is None:
        return None
    values, answer, dropout = ending
    states = [_heads(node) for node in (left, turned, values)]
    query, key, value = states
    if query is None or key is None or value is None or len(shape_of(answer)) != _HEADS:
        return None
    return _Spelled(query, key, value, bias, float(product.kwargs.get("alpha", 1)), dropout, places, answer)  # type: ignore[arg-type]  # schema: Scalar


def _ending(graph_module: fx.GraphModule, weights: fx.Node) -> tuple[fx.Node, fx.Node, float] | None:
    """(values (B·H, T, d), the answer (B, H, T, d), probability of dropout): what is made of a softmax."""
    node, dropout = weights, 0.0
    while len(node.users) == 1:
        before, node = node, next(iter(node.users))
        if node.target is aten.bmm.default and node.args[0] is before:
            answer = next(iter(node.users))
            single = len(node.users) == 1 and answer.target in _VIEWS
            return (node.args[1], answer, dropout) if single else None  # type: ignore[return-value]  # schema: Tensor
        module = graph_module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, nn.Dropout) and not dropout:
            dropout = module.p
        elif node.target not in _COPIES:
            return None
    return None


def _places(bias: fx.Node, mask: fx.Node) -> fx.Node | None:
    """What a bias multiplies its slopes with, where that counts the real tokens of the mask from 0."""
    node = bias
    while not _counts_tokens(node, mask):
        sources = [source for source in node.all_input_nodes if _reads(source, mask)]
        if node.target not in (*_COPIES, aten.mul.Tensor) or len(sources) != 1 or len(sources[0].users) != 1:
            return None
        node = sources[0]
    return node


def _counts_tokens(node: fx.Node, mask: fx.Node) -> bool:
    """Whether a node is cumsum(mask) - 1, or that times the mask."""
    if node.target is aten.mul.Tensor and mask in node.args:
        node = next((operand for operand in node.all_input_nodes if operand is not mask), node)
    if node.target is not aten.sub.Tensor or node.args[1:] != (1,):
        return False
    count = node.all_input_nodes[0]
    return count.target is aten.cumsum.default and count.args == (mask, -1)


def _reads(node: fx.Node, source: fx.Node) -> bool:
    """Whether a node's numbers are computed from a source's; sizes are none."""
    if node.target is aten.sym_size.int:
        return False
    return node is source or any(_reads(operand, source) for operand in node.all_input_nodes)


def _through(node: fx.Node | None, targets: tuple[object, ...]) -> fx.Node | None:
    while node is not None and node.target in targets:
        node = node.all_input_nodes[0]
    return node


def _heads(rows: fx.Node) -> fx.Node | None:
    """States (B, H, T, d) of which `rows` (B·H, T, d) is a view."""
    source = rows.all_input_nodes[0] if rows.target in _VIEWS else rows
    return source if len(shape_of(source)) == _HEADS else None


def _takes_last_axis(attention: Attention) -> bool:
    return attention.key_axis == _HEADS - 1 and attention.holder.target is aten.add.Tensor


def _turns_last(node: fx.Node) -> bool:
    return {int(axis) % (_HEADS - 1) for axis in node.args[1:3]} == {1, 2}  # type: ignore[arg-type]  # schema: int


def _attention_mask(graph: fx.Graph) -> fx.Node | None:
    return next((node for node in graph.find_nodes(op="placeholder") if node.target == ATTENTION_MASK), None)
