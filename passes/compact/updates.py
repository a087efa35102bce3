"""Skip: a thresholded low-rank update → one operator that decides before B is read (TS-PEFT, deployed).

    x ─▶ linear(W0) ──┬───────────────────────────────────────────────▶ add ─▶ y
    └──▶ linear(A) ─▶ linear(B) ─▶ mul(s) ─▶ HardUpdateThreshold(·, base) ─┘
                                          →   base, x ─▶ token_gated_lora(base, x, A, B, G, τ, s) ─▶ y

with G = BᵀB, computed once. Exact: ‖s·B u‖ = |s|·√(uᵀ G u) for u = A x, so the decision is the same before B u is
known; tokens that skip never read B. In floating point a token whose ratio is within rounding of τ may fall on either
side. The paper reports no gain in time because it computes M(x) to decide; this costs r² products a token.

Declines sites whose update is no product B A (its size is known only once it is computed), whose ranks are gated, or
whose update another gate multiplies too: they stay masked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from ...models.update_threshold import HardUpdateThreshold
from ...runtime.ops import update_ops  # noqa: F401  # defines torch.ops.gatefx.token_gated_lora
from ...runtime.ops.schema import MOST_RANK
from ..contract import Pass
from ..find.adapters import AdapterSite
from ..find.thresholds import ThresholdedSite, find_thresholded
from ..graph.edit import emit, emit_attribute, get_tensor, own_tensor, tensor_value
from ..report import Declined, Outcome
from .scale import scale_tensor

aten = torch.ops.aten


@dataclass(frozen=True)
class SkipUpdates(Pass):
    """Skip B at every site whose only gate is a hardened threshold.

    Attributes:
        sites: names of the sites to rewrite; None rewrites all.
    """

    sites: tuple[str, ...] | None = None

    after: ClassVar[tuple[str, ...]] = ("HardenUpdateThresholds",)

    def apply(self, graph_module: fx.GraphModule) -> Outcome:
        """Rewrite each site that can skip."""
        fired, declined = [], []
        # Last first: where one layer feeds another directly, one's sum is the other's state.
        for item in reversed(find_thresholded(graph_module)):
            if self.sites is not None and item.site.name not in self.sites:
                continue
            reason, site, module = _obstacle(item), item.site, item.module
            if reason is not None or not isinstance(site, AdapterSite) or not isinstance(module, HardUpdateThreshold):
                declined.append(Declined(site.name, f"{reason}; it stays masked"))
                continue
            self._skip(graph_module, site, module.threshold.tau, item.call.args[2])
            fired.append(item.site.name)
        if fired:
            graph_module.graph.eliminate_dead_code(is_impure_node=lambda n: n.op in ("placeholder", "output"))
            graph_module.delete_all_unused_submodules()
        return Outcome(tuple(dict.fromkeys(reversed(fired))), tuple(reversed(declined)))

    def _skip(
        self, graph_module: fx.GraphModule, site: AdapterSite, tau: torch.Tensor, level: fx.node.Argument
    ) -> None:
        graph = graph_module.graph
        with graph.inserting_before(site.add):
            gram = self._gram(graph_module, site)
            threshold = self._threshold(graph_module, site, tau, level)
            scale = scale_tensor(graph_module, site, origin=self.name)
            arguments = (site.base, site.x, site.lora_a, site.lora_b, gram, threshold, scale)
            total = emit(graph, torch.ops.gatefx.token_gated_lora.default, arguments, origin=self.name, like=site.add)
        site.add.replace_all_uses_with(total)
        graph.erase_node(site.add)

    def _gram(self, graph_module: fx.GraphModule, site: AdapterSite) -> fx.Node:
        matrix = str(site.lora_b.target)
        name = f"{matrix.removesuffix('.weight')}.gram"
        lora_b = get_tensor(graph_module, matrix).detach()
        own_tensor(graph_module, name, (lora_b.double().t() @ lora_b.double()).to(lora_b.dtype))
        return emit_attribute(graph_module, name, origin=self.name, like=site.add)

    def _threshold(
        self, graph_module: fx.GraphModule, site: AdapterSite, value: torch.Tensor, level: fx.node.Argument
    ) -> fx.Node:
        """max(0, τ + level), in the update's type."""
        graph, like = graph_module.graph, site.add
        name = f"{str(site.lora_a.target).removesuffix('.weight')}.tau"
        own_tensor(graph_module, name, value)
        tau = emit_attribute(graph_module, name, origin=self.name, like=like)
        moved = emit(graph, aten.add.Tensor, (tau, level), origin=self.name, like=like)
        threshold = emit(graph, aten.clamp_min.default, (moved, 0.0), origin=self.name, like=like)
        dtype = tensor_value(like).dtype
        if tensor_value(threshold).dtype != dtype:
            threshold = emit(graph, aten.to.dtype, (threshold, dtype), origin=self.name, like=like)
        return threshold


def _obstacle(item: ThresholdedSite) -> str | None:
    """Why a site cannot skip."""
    site = item.site
    if not isinstance(item.module, HardUpdateThreshold):
        return "its threshold is in training"
    if not isinstance(site, AdapterSite):
        return "its update is no product B A, so its size is known only once it is computed"
    if site.rank > MOST_RANK:
        return f"kernels take ranks up to {MOST_RANK}"
    if site.gate is not None:
        return "its ranks are gated per example too"
    if len(site.factors) > 1:
        return "another gate multiplies its update too"
    if site.branch_input is not site.x:
        return "its input drops out in training: freeze the graph first"
    return None
