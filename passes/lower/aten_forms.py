"""The operators of gatefx in torch's own, for compilers that know no others: fixed numbers of nodes, no size from data.

    gated_lora        every direction is computed, and those that an example does not list are multiplied by zero
    token_gated_lora  every update is computed, and dropped where it is too small beside what the layer answers
    gather_tokens     gather along the axis, the positions repeated over the other axes
    scatter_tokens    gather from the tokens and one row more, of nothing but `fill`

What is saved on a CPU by computing less is not saved here: on a GPU the rank fits one tile of a tensor core whatever
part of it is active. `select_tokens` and `routed_linear` have sizes that only data tell, and so no form here.

Sound: each form is compared with the operator's reference. Axes as in `runtime/ops`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional

from ...runtime.ops.linear_ops import gated_linear, token_gated_linear
from ...runtime.ops.schema import gated_lora
from ...runtime.ops.token_ops import gather_tokens, scatter_tokens
from ...runtime.ops.update_ops import token_gated_lora


def in_aten(graph_module: fx.GraphModule) -> fx.GraphModule:
    """A graph with the weights of `graph_module` that calls the forms and no operator that has one; to be traced."""
    forms = _forms()
    graph = fx.Graph()
    graph.output(graph.graph_copy(graph_module.graph, {}))
    for node in graph.nodes:
        if node.op == "call_function":
            node.target = forms.get(node.target, node.target)
    return fx.GraphModule(graph_module, graph, class_name=type(graph_module).__name__)


def _forms() -> Mapping[Any, Callable[..., Any]]:
    """Operator → its form."""
    return {
        gated_lora._opoverload: gated_lora_in_aten,
        gated_linear._opoverload: gated_linear_in_aten,
        token_gated_lora._opoverload: token_gated_lora_in_aten,
        token_gated_linear._opoverload: token_gated_linear_in_aten,
        gather_tokens._opoverload: gather_tokens_in_aten,
        scatter_tokens._opoverload: scatter_tokens_in_aten,
    }


def gated_lora_in_aten(
    base: Tensor, x: Tensor, lora_a: Tensor, lora_b: Tensor, indices: Tensor, scale: Tensor
) -> Tensor:
    """`gated_lora`: base + scale * B (m * A x), m (B, r) of ones where `indices` lists the direction."""
    directions = torch.arange(lora_a.shape[0], device=indices.device)
    listed = (indices.unsqueeze(2) == directions).to(x.dtype).sum(1)
    mask = (listed * scale).view(listed.shape[0], *(1,) * (x.dim() - 2), listed.shape[1])
    return base + functional.linear(functional.linear(x, lora_a) * mask, lora_b)


def gated_linear_in_aten(  # noqa: PLR0917  # the operator's tensors, in order
    x: Tensor, weight: Tensor, bias: Tensor, lora_a: Tensor, lora_b: Tensor, indices: Tensor, scale: Tensor
) -> Tensor:
    """`gated_linear`: `gated_lora` on top of W x + b."""
    return gated_lora_in_aten(functional.linear(x, weight, bias), x, lora_a, lora_b, indices, scale)


def token_gated_lora_in_aten(  # noqa: PLR0917
    base: Tensor, x: Tensor, lora_a: Tensor, lora_b: Tensor, gram: Tensor, threshold: Tensor, scale: Tensor
) -> Tensor:
    """`token_gated_lora`: the update's size is |scale| * sqrt(uᵀ G u), u = A x."""
    down = functional.linear(x, lora_a)
    # Squares exceed 16 bits, and no rounding should make a choice.
    wide = torch.promote_types(x.dtype, torch.float32)
    form = ((down @ gram).to(wide) * down.to(wide)).sum(-1, keepdim=True)
    size = scale.abs() * form.clamp_min(0).sqrt()
    taking = size >= threshold * base.to(wide).square().sum(-1, keepdim=True).sqrt()
    return base + functional.linear(down * (taking.to(x.dtype) * scale), lora_b)


def token_gated_linear_in_aten(  # noqa: PLR0917
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    gram: Tensor,
    threshold: Tensor,
    scale: Tensor,
) -> Tensor:
    """`token_gated_linear`: `token_gated_lora` on top of W x + b."""
    return token_gated_lora_in_aten(functional.linear(x, weight, bias), x, lora_a, lora_b, gram, threshold, scale)


def gather_tokens_in_aten(x: Tensor, indices: Tensor, dim: int) -> Tensor:
    """`gather_tokens`: x (c*B, *, T, *) or (1, *, T, *) at indices (B, K)."""
    axis = dim + x.dim() if dim < 0 else dim
    examples, kept = indices.shape
    if isinstance(x.shape[0], int) and x.shape[0] == 1:
        x = x.expand(examples, *x.shape[1:])
    rows = indices if x.shape[0] is examples else indices.repeat_interleave(x.shape[0] // examples, 0)
    before, after = x.shape[1:axis], x.shape[axis + 1 :]
    places = rows.view(-1, *(1,) * len(before), kept, *(1,) * len(after))
    return x.gather(axis, places.expand(-1, *before, kept, *after))


def scatter_tokens_in_aten(x: Tensor, indices: Tensor, valid: Tensor, length: int, fill: float) -> Tensor:
    """`scatter_tokens`: x (B, K, *) back to (B, length, *)."""
    examples, kept = indices.shape
    slots = torch.where(valid, torch.arange(kept, device=indices.device), kept)
    origin = torch.full((examples, length), 0, dtype=torch.int64, device=indices.device) + kept
    origin = origin.scatter(1, indices, slots)
    padded = torch.cat([x, torch.full((examples, 1, *x.shape[2:]), fill, dtype=x.dtype, device=x.device)], 1)
    places = origin.view(examples, length, *(1,) * (x.dim() - 2))
    return padded.gather(1, places.expand(-1, -1, *x.shape[2:]))
