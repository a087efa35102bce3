"""Gate: at cuts between layers, a gate per token multiplies the state, and shut tokens leave every later attention.

    h (B,T,d) ─▶ layer ℓ+1 …         h ─▶ token_gate_ℓ(h, mask) = g (B,T) ─▶ G = g, at a later cut G = mul(G before, g)
                                →    h ─▶ mul(h, unsqueeze(G, -1)) ─▶ layer ℓ+1 …
                                     bias = masked_fill(log(clamp_min(G, tiny)), eq(G, 0), min / 2)       (B,T)

    each attention whose keys are these tokens then reads, with `bias` over its axis of keys,
        fused, mask boolean     where(mask, bias, min)        once per mask and cut, whatever number of layers share it
        fused, mask additive    add(mask, bias)               likewise
        fused, no mask          bias
        softmax(add(s, mask))   softmax(add(s, add(mask, bias)))
        softmax, scores filled  masked_fill(add(s, bias), …)
    and each masked pool of a head reads mul(mask, G) for its mask, in the sum and in its divisor.

At a later cut the gate's mask is mul(mask, G before) (G before, where the model has no mask): what is gone is no
token any more. `min` is the dtype's lowest number.

Sound: log 1 = 0 is added exactly, so an open gate leaves kept scores bit for bit. G = 0 adds min / 2, after which a
key's weight underflows to 0, whatever the scores; no row can become NaN, since one key at least is open and stays at
the value its mask gives it. The gradient of log stays finite through the clamp. What a shut token computes as a query
is seen by no other token and by no head; at outputs its row means nothing, like the rows of padding (in models that
mask padded queries too, those may average over shut keys).

Declines cuts after which something else mixes tokens, naming the node; causal attention; models with gates already.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import fx, nn

from ...config import AdapterConfig
from ..contract import Pass
from ..find.adapters import Miss
from ..find.attention import Attention
from ..find.heads import PooledMask, pooled_masks
from ..find.layers import Cut, find_cuts
from ..find.token_flow import TokenFlow, follow_tokens
from ..find.token_rules import rank_of
from ..graph.edit import emit, emit_module, own_module, shape_of, tensor_value
from ..report import Declined, Outcome

aten = torch.ops.aten
TOKEN_GATE = "token_gate"


class MakeGate(Protocol):
    """Builds the gate of one cut: a module (state (B, T, d), mask (B, T) or None) → (B, T) in [0, 1]."""

    def __call__(self, config: AdapterConfig, *, layer: int, width: int, kept: tuple[int, ...]) -> nn.Module:
        """The gate after `layer` layers on states of `width` channels; positions `kept` must stay open."""


@dataclass(frozen=True)
class InsertTokenGates(Pass):
    """Insert a token gate at each cut, and shut out what it drops.

    Attributes:
        config: the method's options; cuts: after how many layers, ascending.
        gate: makes each cut's gate.
    """

    config: AdapterConfig
    cuts: tuple[int, ...]
    gate: MakeGate

    def apply(self, graph_module: fx.GraphModule) -> Outcome:
        """Gate every cut, or none."""
        if any(_is_gate(node) for node in graph_module.graph.find_nodes(op="call_module")):
            return Outcome(declined=(Declined(TOKEN_GATE, "the model's tokens are gated already"),))
        found = find_cuts(graph_module)
        if isinstance(found, Miss):
            return Outcome(declined=(Declined(found.where, found.reason),))
        flows = {cut: follow_tokens(graph_module, cut.state) for cut in found if cut.layer in self.cuts}
        declined = self._declined(found, flows)
        if declined or not flows:
            return Outcome(declined=declined)
        _Gating(self, graph_module, flows).run()
        return Outcome(tuple(f"{TOKEN_GATE}_{cut.layer}" for cut in flows))

    def _declined(self, found: tuple[Cut, ...], flows: dict[Cut, TokenFlow]) -> tuple[Declined, ...]:
        known = [cut.layer for cut in found]
        wrong = [Declined(f"layer {n}", f"cuts are possible after {known} layers") for n in self.cuts if n not in known]
        first = next(iter(flows.values()), None)  # what is downstream of a later cut is downstream of the first
        misses = [*first.misses, *pooled_masks(first)[1]] if first is not None else []
        return tuple(wrong) + tuple(Declined(miss.where, miss.reason) for miss in misses)


def always_kept(flows: dict[Cut, TokenFlow]) -> tuple[int, ...]:
    """The positions that heads read by number, from the start (0, 1, …) or from the end (-1, …)."""
    return tuple(sorted({position for flow in flows.values() for position in flow.positions}))


class _Gating:
    """The edits of one graph, cut by cut in graph order."""

    def __init__(self, item: InsertTokenGates, graph_module: fx.GraphModule, flows: dict[Cut, TokenFlow]) -> None:
        self.item = item
        self.graph_module = graph_module
        self.graph = graph_module.graph
        self.flows = flows
        self.pools = {cut: pooled_masks(flow)[0] for cut, flow in flows.items()}
        self.made: dict[tuple[object, ...], fx.Node] = {}

    def run(self) -> None:
        kept = always_kept(self.flows)
        cuts = list(self.flows)
        before = None
        for index, cut in enumerate(cuts):
            before = self._gate_state(cut, before, kept)
            bias = self._bias(before, cut.state)
            later = self.flows[cuts[index + 1]] if index + 1 < len(cuts) else None
            for attention in self.flows[cut].attentions:
                if later is None or attention not in later.attentions:
                    self._shut_keys(attention, bias)
            beyond = self.pools[cuts[index + 1]] if later is not None else ()
            for reading in self.pools[cut]:
                if reading not in beyond:
                    self._shut_pool(reading, before)

    def _gate_state(self, cut: Cut, before: fx.Node | None, kept: tuple[int, ...]) -> fx.Node:
        """Multiply the cut's state by the gate in force from there on, and return that gate."""
        name, state, value = f"{TOKEN_GATE}_{cut.layer}", cut.state, tensor_value(cut.state)
        made = self.item.gate(self.item.config, layer=cut.layer, width=int(value.shape[2]), kept=kept)
        own_module(self.graph_module, name, made.to(value.device, value.dtype))
        users = list(state.users)
        with self.graph.inserting_after(self._last([state, *([cut.mask] if cut.mask else [])])):
            mask = cut.mask if before is None else before
            gate = emit_module(
                self.graph, name, (state, mask), shape=shape_of(state)[:2], dtype=value.dtype,
                origin=self.item.name, like=state,
            )  # fmt: skip
        if before is not None:
            if cut.mask is not None:
                with self.graph.inserting_before(gate):
                    alive = self._emit(aten.mul.Tensor, (cut.mask, before), state)
                gate.args = (state, alive)
            gate = self._after(gate, aten.mul.Tensor, (before, gate), state)
        spread = self._after(gate, aten.unsqueeze.default, (gate, -1), state)
        masked = self._after(spread, aten.mul.Tensor, (state, spread), state)
        for user in users:
            user.replace_input_with(state, masked)
        return gate

    def _bias(self, gate: fx.Node, like: fx.Node) -> fx.Node:
        """What scores get for a gate: its logarithm; far below every score where it is 0."""
        limits = torch.finfo(tensor_value(gate).dtype)
        positive = self._after(gate, aten.clamp_min.default, (gate, limits.tiny), like)
        logarithm = self._after(positive, aten.log.default, (positive,), like)
        shut = self._after(logarithm, aten.eq.Scalar, (gate, 0), like)
        return self._after(shut, aten.masked_fill.Scalar, (logarithm, shut, limits.min / 2), like)

    def _shut_keys(self, attention: Attention, bias: fx.Node) -> None:
        holder = attention.holder
        if attention.is_fused:
            rank = rank_of(attention.query)
            joined = self._joined(attention.mask, self._spread(bias, rank, rank - 1, holder), holder)
            _set_mask(holder, joined)
            return
        bias = self._spread(bias, rank_of(attention.keys), attention.key_axis, holder)
        if attention.mask is not None:
            holder.replace_input_with(attention.mask, self._joined(attention.mask, bias, holder))
        elif attention.scores is not None:
            with self.graph.inserting_before(holder):
                scores = self._emit(aten.add.Tensor, (attention.scores, bias), holder)
            holder.replace_input_with(attention.scores, scores)

    def _joined(self, mask: fx.Node | None, bias: fx.Node, holder: fx.Node) -> fx.Node:
        """The mask with the bias in it; layers that share one mask share the joined one."""
        if mask is None:
            return bias
        if (mask, bias) not in self.made:
            with self.graph.inserting_before(holder):
                if tensor_value(mask).dtype is torch.bool:
                    lowest = torch.finfo(tensor_value(bias).dtype).min
                    self.made[mask, bias] = self._emit(aten.where.ScalarOther, (mask, bias, lowest), holder)
                else:
                    self.made[mask, bias] = self._emit(aten.add.Tensor, (mask, bias), holder)
        return self.made[mask, bias]

    def _shut_pool(self, reading: PooledMask, gate: fx.Node) -> None:
        factor = gate
        if rank_of(reading.mask) > 2:  # noqa: PLR2004  # beyond batch and tokens
            factor = self._spread(gate, rank_of(reading.mask), 1, reading.user)
        if (reading.mask, factor) not in self.made:
            with self.graph.inserting_before(reading.user):
                product = self._emit(aten.mul.Tensor, (reading.mask, factor), reading.user)
            self.made[reading.mask, factor] = product
        reading.user.replace_input_with(reading.mask, self.made[reading.mask, factor])

    def _spread(self, value: fx.Node, rank: int, axis: int, before: fx.Node) -> fx.Node:
        """(B, T) → `rank` axes, B first and T at `axis`, made once."""
        key = (value, rank, axis)
        if key in self.made:
            return self.made[key]
        spread = value
        with self.graph.inserting_before(before):
            for position in [*range(1, axis), *range(axis + 1, rank)]:
                spread = self._emit(aten.unsqueeze.default, (spread, position), before)
        self.made[key] = spread
        return spread

    def _last(self, nodes: list[fx.Node]) -> fx.Node:
        position = {node: index for index, node in enumerate(self.graph.nodes)}
        candidates: list[fx.Node] = [*self.graph.find_nodes(op="placeholder"), *nodes]
        return max(candidates, key=position.__getitem__)

    def _after(self, place: fx.Node, target: object, args: tuple[fx.node.Argument, ...], like: fx.Node) -> fx.Node:
        with self.graph.inserting_after(place):
            return self._emit(target, args, like)

    def _emit(self, target: object, args: tuple[fx.node.Argument, ...], like: fx.Node) -> fx.Node:
        return emit(self.graph, target, args, origin=self.item.name, like=like)  # type: ignore[arg-type]  # an operator


def _set_mask(node: fx.Node, mask: fx.Node) -> None:
    if len(node.args) > 3:  # noqa: PLR2004  # query, key, value, mask
        node.update_arg(3, mask)
    elif "attn_mask" in node.kwargs or "mask" in node.kwargs:
        node.update_kwarg("attn_mask" if "attn_mask" in node.kwargs else "mask", mask)
    else:
        node.args = (*node.args, mask)


def _is_gate(node: fx.Node) -> bool:
    return str(node.target).startswith(f"{TOKEN_GATE}_")
