"""Settle gates on whole updates: those that decide the same for every token leave the graph.

    open    update ─▶ gated(·) ─▶ add(base, ·) ─▶ y   →   update ─▶ add(base, ·) ─▶ y
    shut    update ─▶ gated(·) ─▶ add(base, ·) ─▶ y   →   base ─▶ y

Exact where every token takes (skips) the update: when gates are opened on purpose, or where a gate cannot vary. Where
that was only observed on data the caller says so by naming the sites; see optimize(freeze_static=True).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import fx

from ..report import Outcome


class GatedUpdateSite(Protocol):
    """What is read of an adapter."""

    @property
    def name(self) -> str:
        """The layer's module path."""

    @property
    def base(self) -> fx.Node:
        """The layer's own output."""

    @property
    def add(self) -> fx.Node:
        """The sum of base and update."""


class GatedUpdate(Protocol):
    """A site and the node that turns its update into the gated one; the update is that node's first input."""

    @property
    def site(self) -> GatedUpdateSite:
        """The adapter."""

    @property
    def gated(self) -> fx.Node:
        """The gated update."""


def settle(
    graph_module: fx.GraphModule,
    found: Sequence[GatedUpdate],
    *,
    open_sites: tuple[str, ...] | None,
    shut: tuple[str, ...],
) -> Outcome:
    """Take the gates of the named sites out, in place.

    Args:
        found: the gates of one kind, in graph order.
        open_sites: names of sites whose update is always taken; None opens all that are not `shut`.
        shut: names of sites whose update is never taken; it leaves the graph with everything it reads alone.
    """
    fired = []
    # Outermost first: where adapters are stacked on one layer, one's sum is the next one's base.
    for item in reversed(found):
        if item.site.name in shut:
            _replace(item.site.add, item.site.base)
        elif open_sites is None or item.site.name in open_sites:
            _replace(item.gated, item.gated.all_input_nodes[0])
        else:
            continue
        fired.append(item.site.name)
    if fired:
        graph_module.graph.eliminate_dead_code(is_impure_node=lambda n: n.op in ("placeholder", "output"))
        graph_module.delete_all_unused_submodules()
    return Outcome(tuple(dict.fromkeys(reversed(fired))))


def _replace(node: fx.Node, value: fx.Node) -> None:
    node.replace_all_uses_with(value)
    node.graph.erase_node(node)
