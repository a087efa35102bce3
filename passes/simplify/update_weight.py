"""An adapter's update as one weight: s·B A for LoRA, s·W0 ⊙ B A for HiRA."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from ..find.adapters import AdapterSite
from ..find.hira import HiraSite
from ..find.linears import Linear
from ..find.modulations import UpdateSite
from ..graph.edit import get_tensor


@torch.no_grad()
def update_weight(graph_module: fx.GraphModule, site: UpdateSite) -> Tensor:
    """ΔW (d_out, d_in), in at least float32."""
    down, up = (site.hira_a, site.hira_b) if isinstance(site, HiraSite) else (site.lora_a, site.lora_b)
    a, b = (_precise(get_tensor(graph_module, str(node.target))) for node in (down, up))
    scale = get_tensor(graph_module, str(site.scale.target)) if isinstance(site.scale, fx.Node) else site.scale
    product = (b @ a) * scale
    if isinstance(site, AdapterSite):
        return product
    weight = _precise(get_tensor(graph_module, str(site.weight.target)))
    return (weight.t() if site.transposed else weight) * product


@torch.no_grad()
def layer_weight(graph_module: fx.GraphModule, linear: Linear) -> Tensor:
    """W0 (d_out, d_in) as it is stored, a view."""
    weight = get_tensor(graph_module, str(linear.weight.target)).detach()
    return weight.t() if linear.transposed else weight


@torch.no_grad()
def merged_weight(graph_module: fx.GraphModule, linear: Linear, site: UpdateSite, gate: float = 1.0) -> Tensor:
    """W0 + g·ΔW (d_out, d_in), computed in at least float32 and stored in W0's type."""
    weight = layer_weight(graph_module, linear)
    return (_precise(weight) + gate * update_weight(graph_module, site)).to(weight.dtype).contiguous()


def _precise(value: Tensor) -> Tensor:
    return value.detach().to(torch.promote_types(value.dtype, torch.float32))
