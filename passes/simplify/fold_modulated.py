"""Fold: an update that is the same for every token → the layer alone, its weight W0 + g·ΔW.

    x ─▶ linear(W0) ─────────────────────▶ add ─▶ y
    └──▶ update(x) ─▶ [mul(g)] ─────────────┘            →   x ─▶ linear(W0 + g·ΔW) ─▶ y

ΔW is s·B A (LoRA) or s·W0 ⊙ B A (HiRA). Exact up to rounding where there is no gate (HiRA; plain LoRA is
`FoldAdapters`' work), or one that is constant: its weights are zero, so g = σ(b) whatever the token.

Refuses a site that is named and whose gate varies: no single weight computes W0 x + g(x)·ΔW x. Declines such sites
where none is named, also rank gates, several gates, dropout, and weights that others read.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx, nn

from ...errors import MethodError
from ...models.modulation import HardModulation
from ..contract import Pass
from ..find.hira import HiraSite
from ..find.linears import Linear, find_linears
from ..find.modulations import UpdateSite, find_modulated, update_sites
from ..graph.edit import emit_attribute, own_tensor
from ..report import Declined, Outcome
from .update_weight import merged_weight

_VARIES = "its gate g(x) varies from token to token: no single weight computes W0 x + g(x)·ΔW x"


@dataclass(frozen=True)
class FoldModulated(Pass):
    """Merge updates with a constant gate, and HiRA updates without one, into their layers.

    Attributes:
        sites: names of the sites to fold; None folds what can be folded.
    """

    sites: tuple[str, ...] | None = None

    def requires(self, graph_module: fx.GraphModule) -> None:
        """No named site has a gate that varies."""
        gates = _gates(graph_module)
        varying = [name for name in self.sites or () if name in gates and gates[name] is None]
        if varying:
            raise MethodError(
                f"{varying[0]} cannot be merged: {_VARIES}.",
                given=", ".join(varying),
                expected="sites without a gate, or with one whose weights are zero",
                remedy="gatefx.optimize keeps the gate and routes each token through one of two weights",
            )

    def apply(self, graph_module: fx.GraphModule) -> Outcome:
        """Fold site after site."""
        gates = _gates(graph_module)
        linears = {linear.output: linear for linear in find_linears(graph_module)}
        fired, declined = [], []
        for site in update_sites(graph_module):
            if not (site.name in self.sites if self.sites is not None else _is_concern(site, gates)):
                continue
            linear = linears.get(site.base)
            reason = _obstacle(site, linear, gates)
            if reason is not None or linear is None:
                declined.append(Declined(site.name, str(reason)))
                continue
            constant = gates.get(site.name)
            self._fold(graph_module, site, linear, 1.0 if constant is None else constant)
            fired.append(site.name)
        if fired:
            graph_module.graph.eliminate_dead_code(is_impure_node=lambda n: n.op in ("placeholder", "output"))
            graph_module.delete_all_unused_submodules()
        return Outcome(tuple(fired), tuple(declined))

    def _fold(self, graph_module: fx.GraphModule, site: UpdateSite, linear: Linear, gate: float) -> None:
        weight = merged_weight(graph_module, linear, site, gate)
        name = f"{linear.path}.merged_weight"
        stored = weight.t().contiguous() if linear.transposed else weight
        own_tensor(graph_module, name, nn.Parameter(stored, requires_grad=False))
        reader = _reader(linear)
        with graph_module.graph.inserting_before(reader):
            node = emit_attribute(graph_module, name, origin=self.name, like=linear.weight)
        reader.replace_input_with(linear.weight, node)
        site.add.replace_all_uses_with(site.base)
        graph_module.graph.erase_node(site.add)


def _gates(graph_module: fx.GraphModule) -> dict[str, float | None]:
    """Site → its modulation's constant g, None where it varies. A hard gate moves with its level, so it varies."""
    return {
        item.site.name: None if isinstance(item.module, HardModulation) else item.module.constant()
        for item in find_modulated(graph_module)
    }


def _is_concern(site: UpdateSite, gates: dict[str, float | None]) -> bool:
    """Whether a site is this pass's to fold or to decline where none is named."""
    return isinstance(site, HiraSite) or site.name in gates


def _obstacle(site: UpdateSite, linear: Linear | None, gates: dict[str, float | None]) -> str | None:
    """Why a site cannot be folded."""
    if len(site.factors) > (1 if site.name in gates else 0):
        return "another gate multiplies its update"
    if site.name in gates and gates[site.name] is None:
        return _VARIES
    if not isinstance(site, HiraSite) and site.gate is not None:
        return "its ranks are gated per example"
    if site.branch_input is not site.x:
        return "its input drops out in training: freeze the graph first"
    if linear is None:
        return "another adapter's update is added below it and was not folded"
    if len(site.base.users) > 1:
        return "something besides the adapter reads what the layer answers"
    return None


def _reader(linear: Linear) -> fx.Node:
    """The node that multiplies by the layer's weight: the output itself, or the product behind its view."""
    return linear.output.all_input_nodes[0] if linear.transposed else linear.output
