"""Adapters as inputs of an ONNX model, so that a request chooses one: any rank, over one base model.

    x ─▶ linear(A) ─▶ linear(B) ─▶ mul(s)        A (r, d_in), B (d_out, r): weights of the graph
    x ─▶ matmul(A') ─▶ matmul(B')                A' = Aᵀ (d_in, rank), B' = s·Bᵀ (rank, d_out): inputs with a default

The default is the graph's own adapter. Exact but for rounding: the scale is multiplied into B. Sound for plain adapters
alone, which the caller has seen to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from ..find.adapters import AdapterSite, find_sites
from ..graph.edit import copy_graph, emit, emit_attribute, get_tensor, own_tensor

if TYPE_CHECKING:
    import onnx_ir

_ORIGIN = "open_adapters"


@dataclass(frozen=True)
class OpenSite:
    """A layer whose adapter is an input.

    Attributes:
        path: of the layer; a, b: names of the inputs A' (d_in, rank) and B' (rank, d_out).
    """

    path: str
    a: str
    b: str
    d_in: int
    d_out: int


def open_site(site: AdapterSite) -> OpenSite:
    """The names that the adapter of a site gets."""
    return OpenSite(
        site.path, f"{site.path}.lora_A.weight", f"{site.path}.lora_B.weight", d_in=site.d_in, d_out=site.d_out
    )


def open_adapters(graph_module: fx.GraphModule) -> fx.GraphModule:
    """A graph over the same weights whose adapters are the buffers that `open_site` names."""
    result = copy_graph(graph_module)
    for site in find_sites(result)[0]:
        opened = open_site(site)
        scale = get_tensor(result, str(site.scale.target)) if isinstance(site.scale, fx.Node) else site.scale
        lora_a, lora_b = (get_tensor(result, str(node.target)).detach() for node in (site.lora_a, site.lora_b))
        _open(result, site, opened, as_inputs(lora_a, lora_b * scale))
    result.graph.eliminate_dead_code()
    result.recompile()
    return result.eval()  # as a deployed model's modules are; the new ones are not yet


def as_inputs(lora_a: Tensor, lora_b: Tensor) -> tuple[Tensor, Tensor]:
    """A' (d_in, r) and B' (r, d_out) of A (r, d_in) and B (d_out, r), whose scale is in B."""
    return lora_a.T.contiguous(), lora_b.T.contiguous()


def _open(graph_module: fx.GraphModule, site: AdapterSite, opened: OpenSite, values: tuple[Tensor, Tensor]) -> None:
    state = site.branch_input
    with graph_module.graph.inserting_before(site.add):
        for name, value in zip((opened.a, opened.b), values, strict=True):
            own_tensor(graph_module, name, value)
            matrix = emit_attribute(graph_module, name, origin=_ORIGIN, like=site.down)
            state = emit(
                graph_module.graph, torch.ops.aten.matmul.default, (state, matrix), origin=_ORIGIN, like=site.down
            )
    site.add.replace_input_with(site.scaled, state)


def free_ranks(model: onnx_ir.Model, sites: Sequence[OpenSite]) -> None:
    """Give each adapter's rank a name instead of a size, so that any can be passed."""
    import onnx_ir

    inputs = {value.name: value for value in model.graph.inputs}
    for number, site in enumerate(sites):
        rank = f"rank_{number}"
        down, up = inputs[site.a], inputs[site.b]
        down.shape, up.shape = onnx_ir.Shape((site.d_in, rank)), onnx_ir.Shape((rank, site.d_out))
        for reader, _ in down.uses():
            state = reader.outputs[0]
            if state.shape is not None:
                state.shape = onnx_ir.Shape((*tuple(state.shape)[:-1], rank))
