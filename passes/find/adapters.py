"""Adapter sites: where a graph adds a low-rank update to a linear layer, or the reason why a near miss is none.

    x ──▶ linear(W0) ────────────────────────────────▶ add ──▶ y          AdapterSite
    └──▶ [dropout] ─▶ linear(A) ─▶ [mul(gate)] ─▶ linear(B) ─▶ [mul(s)] ─▶ [factor]* ──┘

Recognised by structure, never by name alone: A (r, d_in) is read by one linear, whose result only B (d_out, r) reads,
whose scaled result is added to the linear that reads the same x. That is what PEFT's LoRA traces to with any
rank_pattern, alpha_pattern, rsLoRA, lora_dropout and bias, over nn.Linear and Conv1D, and what gatefx attaches itself.
Several adapters on one layer are several sites, one adding to the other's sum.

Misses: adapters on embeddings, DoRA (the update is renormalised), biased adapters (lora_bias), a branch that is not
added to its own layer, a leading axis that is not the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from ...models.token_scores import LayerShift, LogitShift
from ..graph.edit import tensor_value
from .updates import before_dropout, has_bias, leads_with_batch, matrix_of, scaled_update, sum_with_base, update_factors

aten = torch.ops.aten
_BRANCH_NAMES = ("lora_A", "lora_B", "lora_E", "lora_embedding_A", "lora_magnitude_vector")

_EMBEDDING = "its A is looked up, not multiplied (an embedding adapter)"
_OTHER_SHAPE = "its A and B do not form linear(A) then linear(B), added to the layer over the same input"


@dataclass(frozen=True)
class AdapterSite:
    """One linear layer with a low-rank update y = base + scale·B A x.

    Attributes:
        path: the layer's module path; name: unique: the path, and the adapter's name if there are several.
        x: state entering the layer, (B, …, d_in); base: the layer's own output, (B, …, d_out).
        down: u = A x, (B, …, r); gate: the node that multiplies u, or None; up: B u; scaled: s·B u (or up); add: y.
        factors: gates on the whole scaled update, innermost first (`updates.py`).
        lora_a: get_attr of A (r, d_in); lora_b: get_attr of B (d_out, r); scale: s, a number or a get_attr node.
        branch_input: x, or x after the adapter's dropout.
    """

    name: str
    path: str
    x: fx.Node
    branch_input: fx.Node
    base: fx.Node
    down: fx.Node
    gate: fx.Node | None
    up: fx.Node
    scaled: fx.Node
    add: fx.Node
    lora_a: fx.Node
    lora_b: fx.Node
    scale: float | fx.Node
    rank: int
    d_in: int
    d_out: int
    factors: tuple[fx.Node, ...] = ()

    @property
    def update(self) -> fx.Node:
        """What is added to the layer's output: the scaled update times every factor."""
        return self.factors[-1] if self.factors else self.scaled


@dataclass(frozen=True)
class Miss:
    """A branch that looks like an adapter and is not a site, and why."""

    where: str
    reason: str


def find_sites(graph_module: fx.GraphModule) -> tuple[tuple[AdapterSite, ...], tuple[Miss, ...]]:
    """All adapter sites in graph order, and the near misses."""
    sites: list[AdapterSite] = []
    misses: list[Miss] = []
    matched: set[str] = set()
    for node in graph_module.graph.nodes:
        if node.target is not aten.linear.default:
            continue
        found = _match(node, graph_module)
        if isinstance(found, AdapterSite):
            sites.append(found)
            matched.update((str(found.lora_a.target), str(found.lora_b.target)))
        elif found is not None:
            misses.append(found)
    misses += _unmatched(graph_module, matched, misses)
    return tuple(sites), tuple(misses)


def _match(down: fx.Node, graph_module: fx.GraphModule) -> AdapterSite | Miss | None:
    """Read a site from its down-projection; None where the node is not one."""
    up, gate = _up_projection(down, graph_module)
    lora_a = matrix_of(down)
    lora_b = matrix_of(up) if up is not None else None
    if up is None or lora_a is None or lora_b is None:
        return None
    rank, d_in = (int(size) for size in tensor_value(lora_a).shape)
    d_out = int(tensor_value(lora_b).shape[0])
    named = named_as_adapter(lora_a)
    if not named and rank >= min(d_in, d_out):
        return None
    branch_input = down.all_input_nodes[0]
    x = before_dropout(branch_input, graph_module)
    scaled, scale = scaled_update(up)
    factors = update_factors(scaled, graph_module)
    joined = (
        sum_with_base(factors[-1] if factors else scaled, x, d_out)
        if len(readers_of(down, graph_module)) == 1
        else "something besides B reads A x"
    )
    if has_bias(down) or has_bias(up):
        joined = "its A or B has a bias, which no rank direction carries and a shut gate would leave on"
    if not isinstance(joined, str) and not leads_with_batch(x):
        joined = "the leading axis of its input is not the batch, so one gate per example has no place"
    if isinstance(joined, str):
        return Miss(str(lora_a.target).rpartition(".lora_")[0], joined) if named else None
    total, base, weight = joined
    path = plain_path(str(weight.target))
    return AdapterSite(
        _site_name(path, lora_a), path, x, branch_input, base, down, gate, up, scaled, total, lora_a, lora_b, scale,
        rank, d_in, d_out, factors,
    )  # fmt: skip


def readers_of(values: fx.Node, graph_module: fx.GraphModule) -> list[fx.Node]:
    """Who reads rank values; a measurement of them (see `models/token_scores.py`) is no part of the adapter."""
    return [user for user in values.users if not _measures(user, graph_module)]


def _measures(node: fx.Node, graph_module: fx.GraphModule) -> bool:
    return node.op == "call_module" and isinstance(
        graph_module.get_submodule(str(node.target)), (LayerShift, LogitShift)
    )


def _up_projection(down: fx.Node, graph_module: fx.GraphModule) -> tuple[fx.Node | None, fx.Node | None]:
    """The linear that reads A x, directly or through one gate multiplication."""
    for user in readers_of(down, graph_module):
        if user.target is aten.linear.default and user.args[0] is down:
            return user, None
        readers = readers_of(user, graph_module)
        if user.target is aten.mul.Tensor and len(readers) == 1 and user.args[0] is down:
            (up,) = readers
            if up.target is aten.linear.default and up.args[0] is user:
                return up, user
    return None, None


def named_as_adapter(node: fx.Node) -> bool:
    """Whether a tensor bears a name that PEFT gives to a part of an adapter."""
    return any(f".{name}." in f".{node.target}." for name in _BRANCH_NAMES)


def plain_path(tensor_name: str) -> str:
    """The module path of a tensor, as it was before PEFT wrapped the model."""
    path = tensor_name.rpartition(".")[0].removesuffix(".base_layer")
    return path.removeprefix("base_model.model.")


def _site_name(path: str, lora_a: fx.Node) -> str:
    """The layer's path, with the adapter's name where it is not PEFT's or our own default."""
    adapter = str(lora_a.target).rpartition(".")[0].rpartition("lora_A")[2].strip(".")
    return path if adapter in ("", "default") else f"{path}[{adapter}]"


def _unmatched(graph_module: fx.GraphModule, matched: set[str], misses: list[Miss]) -> list[Miss]:
    """Tensors named like an adapter's that belong to no site."""
    explained = {miss.where for miss in misses}
    found: dict[str, Miss] = {}
    for node in graph_module.graph.find_nodes(op="get_attr"):
        name = str(node.target)
        where = name.rpartition(".lora_")[0]
        if name in matched or where in explained or not named_as_adapter(node):
            continue
        embedding = "embedding" in name.rpartition(".lora_")[2]
        reason = _EMBEDDING if embedding else _OTHER_SHAPE
        found.setdefault(where, Miss(where, reason))
    return list(found.values())
