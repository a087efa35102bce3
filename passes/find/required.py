"""The adapter sites of a graph that must have some."""

from __future__ import annotations

from torch import fx

from ...errors import SiteError
from .adapters import AdapterSite, find_sites


def required_sites(graph_module: fx.GraphModule) -> tuple[AdapterSite, ...]:
    """The graph's adapter sites.

    Raises:
        SiteError: there are none, with the near misses.
    """
    sites, misses = find_sites(graph_module)
    if not sites:
        raise SiteError(
            "The model has no adapter that a gate could act on.",
            given="; ".join(f"{m.where}: {m.reason}" for m in misses) or "no LoRA branch in the captured graph",
            expected="LoRA on linear layers",
            remedy='call gatefx.prepare(model, method="ccm", budget=6, rank=16, example_inputs=batch), '
            "or name other target_modules",
        )
    return sites
