"""Gate: every adapter's update is skipped at tokens where it is small beside what the layer answers (TS-PEFT, Eq. 2).

    x ─▶ linear(W0) ──────────────▶ add ─▶ y        x ─▶ linear(W0) ──┬──────────────────────▶ add ─▶ y
    └──▶ … update ─▶ [mul(s)] ──────┘         →     └──▶ … update ─▶ UpdateThreshold(·, base) ─┘

Sound: τ starts at 0, which every token reaches, and 1·M(x) is M(x) bit for bit. The gate stands after the scale and
after gates that were inserted before, and takes their product for M(x). The attention mask, where the state has its
length, only tells the gate which tokens are real.

Refuses a graph without adapters. Declines sites that a threshold gates already.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from ...errors import SiteError
from ...models.configs.tspeft import TSPEFT
from ...models.update_threshold import UpdateThreshold
from ..contract import Pass
from ..find.adapters import find_sites, plain_path
from ..find.thresholds import AnySite, additive_sites, find_thresholded
from ..graph.edit import emit_module, own_module, shape_of, tensor_value
from ..report import Declined, Outcome
from .rank_router import real_token_mask

_GATE = "update_threshold"


@dataclass(frozen=True)
class InsertUpdateThresholds(Pass):
    """Insert one threshold per adapter; calls of layers that share one share its threshold.

    Attributes:
        config: the method's options; budget: share of tokens×sites to train towards, None for none.
    """

    config: TSPEFT
    budget: float | None = None

    def requires(self, graph_module: fx.GraphModule) -> None:
        """At least one adapter site."""
        if not additive_sites(graph_module):
            misses = find_sites(graph_module)[1]
            raise SiteError(
                "The model has no adapter whose update could be skipped.",
                given="; ".join(f"{m.where}: {m.reason}" for m in misses) or "no adapter in the captured graph",
                expected="an adapter that adds an update to a linear layer",
                remedy='call gatefx.prepare(model, method="tspeft", rank=16, example_inputs=batch)',
            )

    def apply(self, graph_module: fx.GraphModule) -> Outcome:
        """Gate the sites that no threshold gates yet."""
        gated = {item.site.name for item in find_thresholded(graph_module)}
        declined = [Declined(name, "it has a threshold already") for name in sorted(gated)]
        sites = additive_sites(graph_module)
        paths = {site.path for site in sites}
        misses = (miss for miss in find_sites(graph_module)[1] if plain_path(f"{miss.where}.weight") not in paths)
        declined += [Declined(miss.where, miss.reason) for miss in misses]
        names = {name: f"{_GATE}_{index}" for index, name in enumerate(dict.fromkeys(site.name for site in sites))}
        fired = [name for name in names if name not in gated]
        for name in fired:
            own_module(graph_module, names[name], UpdateThreshold(self.config, budget=self.budget))
        for site in sites:
            if site.name not in gated:
                self._gate(graph_module, site, names[site.name])
        return Outcome(tuple(fired), tuple(declined))

    def _gate(self, graph_module: fx.GraphModule, site: AnySite, name: str) -> None:
        value = tensor_value(site.update)
        graph_module.get_submodule(name).to(device=value.device)
        mask = real_token_mask(graph_module, site.x)
        arguments = (site.update, site.base) if mask is None else (site.update, site.base, mask)
        with graph_module.graph.inserting_before(site.add):
            gated = emit_module(
                graph_module.graph, name, arguments, shape=shape_of(site.update), dtype=value.dtype,
                origin=self.name, like=site.scaled,
            )  # fmt: skip
        site.add.replace_input_with(site.update, gated)


def masks_of(graph_module: fx.GraphModule) -> dict[str, str]:
    """Site → the input that says which of its tokens are real, where its training gate reads one."""
    found = {}
    for item in find_thresholded(graph_module):
        mask = item.call.args[2] if isinstance(item.module, UpdateThreshold) and len(item.call.args) > 2 else None  # noqa: PLR2004  # (update, base, mask)
        if isinstance(mask, fx.Node):
            found[item.site.name] = str(mask.target)
    return found
