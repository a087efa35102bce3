"""Scores: nodes that measure what LoRA does to every token, for gates that need them and for the full forward.

    u_q, u_k, … (B,T,r) ─▶ layer_shift_ℓ(u_q, B_q, u_k, B_k, …) = s_ℓ (B,T)

    ShowTokenScores    the output gets `token_scores`, the shifts of all scored layers on top of each other, (L,B,T)
    FeedTokenGates     token_gate_ℓ(h, mask)  →  token_gate_ℓ(h, mask, protected, path, real)

`protected` marks the question of extractive question answering (token type 0), and in a decoder the ends of the text:
the first `sinks` tokens, on which attention rests whatever they say, and the last `recent` ones, at least that whose
logits a prompt is read for.
`path` = token_path_ℓ(mask, s_1 … s_ℓ) is the score of the layers before the cut where scores come from there, `real`
the attention mask at later cuts, whose `mask` no longer has the tokens that are gone.

Sound: nothing that the model computes reads the new nodes, except token gates.

Refuses a cut before which no adapter stands, where scores come from the path.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import fx

from ...errors import MethodError, SiteError
from ...models.configs.masklora import MaskLoRA
from ...models.families import ATTENTION_MASK
from ...models.token_gate import TokenGate
from ...models.token_scores import LayerShift, LogitShift, PathScore
from ..contract import Pass
from ..find.adapters import AdapterSite, Miss
from ..find.last_token import VISIBLE
from ..find.layers import find_cuts
from ..find.logit_sites import LogitSite, find_logit_sites
from ..find.scored_layers import ScoredLayer, find_scored_layers
from ..graph.edit import answers_of, emit, emit_module, get_tensor, own_module, shape_of, tensor_value
from ..report import Outcome

aten = torch.ops.aten

#: The output with every scored layer's shifts.
TOKEN_SCORES = "token_scores"
_QUESTION = 0  # token type of the question, in tokenizers of extractive question answering
_TOKEN_TYPES, _ANSWERS = "token_type_ids", "start_logits"


@dataclass(frozen=True)
class ShowTokenScores(Pass):
    """Add the shifts of all scored layers to the outputs.

    Attributes:
        influence: "hidden", "logits" or "mixed" (hidden, then logits); heads: how logit shifts are reduced.
    """

    influence: str = "hidden"
    heads: str = "mean"

    def apply(self, graph_module: fx.GraphModule) -> Outcome:
        """Measure every layer."""
        graph = graph_module.graph
        output = graph.output_node()
        layers = required_layers(graph_module)
        sites = required_logit_sites(graph_module, layers) if self.influence != "hidden" else ()
        shifts = []
        if self.influence != "logits":
            shifts += [shift_node(graph_module, layer, origin=self.name) for layer in layers]
        shifts += [logit_node(graph_module, i, site, self.heads, self.name) for i, site in enumerate(sites, 1)]
        with graph.inserting_before(output):
            stacked = emit(graph, aten.stack.default, (shifts,), origin=self.name, like=shifts[0])
        output.args = ({**answers_of(graph), TOKEN_SCORES: stacked},)
        return Outcome((TOKEN_SCORES,))


@dataclass(frozen=True)
class FeedTokenGates(Pass):
    """Give training gates what they read beside the state.

    Attributes:
        config: the options.
    """

    config: MaskLoRA

    def apply(self, graph_module: fx.GraphModule) -> Outcome:
        """Extend the arguments of every gate."""
        gates = [(node, module) for node, module in token_gates(graph_module) if len(node.args) == 2]  # noqa: PLR2004
        inputs = {str(node.target): node for node in graph_module.graph.find_nodes(op="placeholder")}
        layers = required_layers(graph_module) if self.config.scores == "path" else ()
        made: dict[int, fx.Node] = {}
        real = gates[0][0].args[1] if gates else None
        protected = self._protected(graph_module, inputs, gates[0][0] if gates else None)
        for index, (node, module) in enumerate(gates):
            path = self._path(graph_module, node, module, layers, made) if layers else None
            given = (protected, path, real if index else None)
            needed = max((count for count, value in enumerate(given, 1) if value is not None), default=0)
            node.args = (*node.args, *given[:needed])
        return Outcome(tuple(str(node.target) for node, _ in gates if len(node.args) > 2))  # noqa: PLR2004

    def _protected(
        self, graph_module: fx.GraphModule, inputs: Mapping[str, fx.Node], gate: fx.Node | None
    ) -> fx.Node | None:
        graph = graph_module.graph
        if gate is None:
            return None
        visible = graph.find_nodes(op="call_function", target=VISIBLE)
        if visible:
            return self._ends(graph, visible[0].args[0], inputs[ATTENTION_MASK], gate)
        if _TOKEN_TYPES not in inputs or _ANSWERS not in answers_of(graph):
            return None
        with graph.inserting_before(gate):
            return emit(graph, aten.eq.Scalar, (inputs[_TOKEN_TYPES], _QUESTION), origin=self.name, like=gate)

    def _ends(self, graph: fx.Graph, positions: fx.Node, mask: fx.Node, gate: fx.Node) -> fx.Node:
        """The first and the last real tokens, (B,T) bool; padding may be marked too, which nobody keeps."""

        def add(target: Callable[..., object], *args: fx.node.Argument) -> fx.Node:
            return emit(graph, target, args, origin=self.name, like=gate)

        with graph.inserting_before(gate):
            last = add(aten.amax.default, add(aten.mul.Tensor, positions, mask), [1], True)
            first = add(aten.lt.Scalar, positions, self.config.sinks)
            near = add(aten.ge.Scalar, add(aten.sub.Tensor, positions, last), 1 - self.config.recent)
            return add(aten.logical_or.default, first, near)

    def _path(
        self,
        graph_module: fx.GraphModule,
        node: fx.Node,
        gate: TokenGate,
        layers: tuple[ScoredLayer, ...],
        made: dict[int, fx.Node],
    ) -> fx.Node:
        before = [layer for layer in layers if layer.layer <= gate.layer]
        if not before:
            raise MethodError(
                "No adapter stands before the cut, so its path has no scores.",
                given=f"scores='path', a cut after layer {gate.layer}, adapters from layer {layers[0].layer} on",
                expected="a later cut, or scores='predicted'",
            )
        for layer in before:
            if layer.layer not in made:
                made[layer.layer] = shift_node(graph_module, layer, origin=self.name)
        shifts = [made[layer.layer] for layer in before]
        name, value = f"token_path_{gate.layer}", tensor_value(shifts[0])
        own_module(graph_module, name, PathScore(len(shifts), self.config.aggregate).to(value.device))
        with graph_module.graph.inserting_before(node):
            return emit_module(
                graph_module.graph, name, (node.args[1], *shifts), shape=shape_of(node), dtype=value.dtype,
                origin=self.name, like=node,
            )  # fmt: skip


def token_gates(graph_module: fx.GraphModule) -> tuple[tuple[fx.Node, TokenGate], ...]:
    """The training gates on tokens that a graph calls, cut by cut."""
    found = []
    for node in graph_module.graph.find_nodes(op="call_module"):
        module = graph_module.get_submodule(str(node.target))
        if isinstance(module, TokenGate):
            found.append((node, module))
    return tuple(found)


def required_layers(graph_module: fx.GraphModule) -> tuple[ScoredLayer, ...]:
    """The layers whose adapters score tokens.

    Raises:
        SiteError: there are none.
    """
    layers = find_scored_layers(graph_module)
    if isinstance(layers, Miss):
        raise SiteError(
            "No adapter scores the model's tokens.",
            given=f"{layers.where}: {layers.reason}",
            expected="an encoder, alone or in front of a decoder, or a causal language model, with LoRA in its layers",
            remedy="adapt these layers (target_modules='all-linear'); pass input_ids and attention_mask of a decoder",
        )
    return layers


def shift_node(graph_module: fx.GraphModule, layer: ScoredLayer, *, origin: str) -> fx.Node:
    """A node s_ℓ (B,T) after the last site of a layer."""
    arguments: list[fx.Node] = []
    scales, counts = [], []
    for site in layer.sites:
        # A threshold skips small updates only: the score is that of the update it looks at.
        products = [product for product in site.factors if product.target is aten.mul.Tensor]
        factors = [factor for product in products if isinstance(factor := product.args[1], fx.Node)]
        if isinstance(site.scale, fx.Node):
            factors.append(site.scale)
        arguments += [_rank_values(site), site.lora_b, *factors]
        scales.append(1.0 if isinstance(site.scale, fx.Node) else float(site.scale))
        counts.append(len(factors))
    name = f"layer_shift_{layer.layer}"
    like = layer.sites[-1].down
    value = tensor_value(like)
    own_module(graph_module, name, LayerShift(tuple(scales), tuple(counts)))
    place = {node: index for index, node in enumerate(graph_module.graph.nodes)}
    precision = torch.promote_types(value.dtype, torch.float32)
    with graph_module.graph.inserting_after(max(arguments, key=place.__getitem__)):
        return emit_module(
            graph_module.graph, name, arguments, shape=shape_of(like)[:2], dtype=precision, origin=origin, like=like
        )


def required_logit_sites(graph_module: fx.GraphModule, layers: tuple[ScoredLayer, ...]) -> tuple[LogitSite, ...]:
    """Query and key of every scored layer.

    Raises:
        SiteError: a layer without them.
    """
    sites = find_logit_sites(graph_module, layers)
    if isinstance(sites, Miss):
        raise SiteError(
            "The shift of attention logits cannot be told from the adapters.",
            given=f"{sites.where}: {sites.reason}",
            expected="LoRA on separate query and key layers, attention in one operator",
            remedy="use influence='hidden', or adapt query and key in every layer",
        )
    return sites


def logit_node(graph_module: fx.GraphModule, index: int, site: LogitSite, heads: str, origin: str) -> fx.Node:
    """A node ‖Δα_i‖ (B,T) after the later of the two sites."""
    pair = (site.query, site.key)
    scale = 1.0
    for item in pair:
        scale *= float(_scale_of(graph_module, item))
    name, like = f"logit_shift_{index}", site.key.down
    own_module(graph_module, name, LogitShift(scale, site.heads, heads))
    inputs = {str(node.target): node for node in graph_module.graph.find_nodes(op="placeholder")}
    arguments = [node for item in pair for node in (_rank_values(item), item.lora_b)]
    mask = find_cuts(graph_module)
    real = None if isinstance(mask, Miss) or mask[0].mask is None else inputs[str(mask[0].mask.target)]
    place = {node: position for position, node in enumerate(graph_module.graph.nodes)}
    precision = torch.promote_types(tensor_value(like).dtype, torch.float32)
    with graph_module.graph.inserting_after(max(arguments, key=place.__getitem__)):
        return emit_module(
            graph_module.graph, name, (real, *arguments), shape=shape_of(like)[:2], dtype=precision, origin=origin,
            like=like,
        )  # fmt: skip


def _scale_of(graph_module: fx.GraphModule, site: AdapterSite) -> float:
    return float(get_tensor(graph_module, str(site.scale.target))) if isinstance(site.scale, fx.Node) else site.scale


def _rank_values(site: AdapterSite) -> fx.Node:
    """What B multiplies: A x, or A x times the gate on rank directions."""
    values = site.up.args[0]
    if not isinstance(values, fx.Node):
        raise SiteError("An adapter's B reads no node.", given=site.name)
    return values
