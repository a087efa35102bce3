"""Fold: a plain LoRA site → the layer alone, its weight W0 + s·B A; the adapter then costs nothing.

    x ─▶ linear(W0) ───────────────────────────────────▶ add ─▶ y
    └──▶ linear(A) ─▶ linear(B) ─▶ mul(s) ──────────────┘            →   x ─▶ linear(W0 + s·B A) ─▶ y

Exact up to rounding: (W0 + s·B A) x = W0 x + s·B(A x).

Refuses gated sites (merging a gated adapter would change the function; a constant gate is dropped before), sites in
dropout, a layer whose weight
another node reads, and updates added to another adapter's sum (fold the inner one first; the pass does, in order).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx, nn

from ..contract import Pass
from ..find.adapters import AdapterSite, find_sites
from ..find.linears import find_linears
from ..graph.edit import emit_attribute, get_tensor, own_tensor
from ..report import Declined, Outcome

aten = torch.ops.aten


@dataclass(frozen=True)
class FoldAdapters(Pass):
    """Merge ungated adapters into the weights of their layers.

    Attributes:
        sites: names of the sites to fold; None folds every ungated site.
    """

    sites: tuple[str, ...] | None = None

    def apply(self, graph_module: fx.GraphModule) -> Outcome:
        """Fold site after site."""
        fired: list[str] = []
        while True:
            folded, declined = self._fold_one_per_layer(graph_module)
            if not folded:
                break
            fired += folded
        graph_module.graph.eliminate_dead_code(is_impure_node=lambda n: n.op in ("placeholder", "output"))
        graph_module.delete_all_unused_submodules()
        return Outcome(tuple(fired), tuple(declined))

    def _fold_one_per_layer(self, graph_module: fx.GraphModule) -> tuple[list[str], list[Declined]]:
        """Fold the innermost adapter of every layer; the next one then adds to the layer itself."""
        folded: dict[str, str] = {}
        declined = []
        for site in find_sites(graph_module)[0]:
            if site.path in folded or (self.sites is not None and site.name not in self.sites):
                continue
            reason = self._fold(graph_module, site)
            if reason is None:
                folded[site.path] = site.name
            else:
                declined.append(Declined(site.name, reason))
        return list(folded.values()), declined

    def _fold(self, graph_module: fx.GraphModule, site: AdapterSite) -> str | None:
        """Fold one site; the reason where that is not sound."""
        if site.gate is not None:
            return "its gate decides per example, so one merged weight would be another function"
        if site.factors:
            return (
                f"its update is multiplied by {site.factors[0].args[1]}, so one merged weight would be another function"
            )
        if site.branch_input is not site.x:
            return "its input drops out in training: freeze the graph first"
        if len(site.up.args) > 2:  # noqa: PLR2004  # (input, weight, bias)
            return "its B has a bias"
        linear = next((item for item in find_linears(graph_module) if item.output is site.base), None)
        if linear is None:
            return "another adapter's update is added below it and was not folded"
        if len(linear.weight.users) != 1:
            return f"{linear.weight.target} is read in several places"
        name = f"{linear.path}.merged_weight"
        merged = _merged(graph_module, site, str(linear.weight.target), transposed=linear.transposed)
        own_tensor(graph_module, name, nn.Parameter(merged, requires_grad=False))
        reader = next(iter(linear.weight.users))
        with graph_module.graph.inserting_before(reader):
            node = emit_attribute(graph_module, name, origin=self.name, like=linear.weight)
        reader.replace_input_with(linear.weight, node)
        site.add.replace_all_uses_with(site.base)
        graph_module.graph.erase_node(site.add)
        return None


def _merged(graph_module: fx.GraphModule, site: AdapterSite, weight_name: str, *, transposed: bool) -> torch.Tensor:
    """W0 + s·B A, computed in at least float32 and stored in W0's type."""
    with torch.no_grad():
        weight, lora_a, lora_b = (
            get_tensor(graph_module, name) for name in (weight_name, str(site.lora_a.target), str(site.lora_b.target))
        )
        scale = get_tensor(graph_module, str(site.scale.target)) if isinstance(site.scale, fx.Node) else site.scale
        precision = torch.promote_types(weight.dtype, torch.float32)
        update = (lora_b.to(precision) @ lora_a.to(precision)) * scale
        return (weight.to(precision) + (update.t() if transposed else update)).to(weight.dtype)
