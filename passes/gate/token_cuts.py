"""Place: a schedule of cuts, or one cut after a quarter of the layers, and a gate on tokens at each.

See `token_gate.py` for what a gate does to the graph. A decoder's gates choose among the tokens of its prompt
(`decode/prefill.py`); one whose masks are not captured by explicit positions has no cut.

Refuses models without a cut, and cuts after which something mixes tokens in a way that no gate can join.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import fx, nn

from ...config import AdapterConfig
from ...errors import MethodError, SiteError
from ...models.configs.masklora import MaskLoRA
from ...models.token_gate import SharePoint, TokenGate
from ..contract import Pass
from ..find.adapters import Miss
from ..find.layers import Cut, find_cuts
from ..report import Outcome
from .token_gate import InsertTokenGates
from .token_scores import required_layers, required_logit_sites

_PART = 4  # a cut after the first quarter of the layers: before it too little is known, after it too little is saved


@dataclass(frozen=True)
class PlaceTokenGates(Pass):
    """Insert the gates of a schedule.

    Attributes:
        config: the options, with the schedule or none; budget: share of the tokens that the last cut keeps.
    """

    config: MaskLoRA
    budget: float

    def requires(self, graph_module: fx.GraphModule) -> None:
        """Cuts, and adapters that score tokens."""
        required_layers(graph_module)

    def apply(self, graph_module: fx.GraphModule) -> Outcome:
        """Place every gate, or none."""
        cuts = find_cuts(graph_module)
        if isinstance(cuts, Miss):
            raise SiteError("The model has no cut.", given=f"{cuts.where}: {cuts.reason}")
        shares = schedule_of(self.config, self.budget, cuts)
        layers = required_layers(graph_module)
        if self.config.influence != "hidden":
            required_logit_sites(graph_module, layers)
        make = _MakeGate(shares, self.config.kinds * len(layers))
        outcome = InsertTokenGates(self.config, tuple(shares), make).apply(graph_module)
        if not outcome.fired:
            raise SiteError(
                "The model's tokens cannot be dropped there.",
                given="; ".join(f"{item.where}: {item.reason}" for item in outcome.declined),
                expected="layers after which only attention and masked pools mix tokens",
                remedy="cut later with MaskLoRA(keep={layer: share}), or use a method that keeps every token",
            )
        return outcome


@dataclass(frozen=True)
class _MakeGate:
    """Makes the gate of a cut; see `token_gate.MakeGate`."""

    shares: dict[int, SharePoint]
    layers: int

    def __call__(self, config: AdapterConfig, *, layer: int, width: int, kept: tuple[int, ...]) -> nn.Module:
        if not isinstance(config, MaskLoRA):
            raise MethodError(f"A {type(config).__name__} describes no gates on tokens.", expected="MaskLoRA")
        return TokenGate(config, layer=layer, width=width, kept=kept, share=self.shares[layer], layers=self.layers)


def schedule_of(config: MaskLoRA, budget: float, cuts: Sequence[Cut]) -> dict[int, SharePoint]:
    """Cut → the share that it keeps.

    Raises:
        MethodError: a cut that the model does not have.
    """
    known = [cut.layer for cut in cuts]
    if config.keep is None:
        wanted = math.ceil((max(known) + 1) / _PART)
        layer = next((n for n in known if n >= wanted), known[-1])
        return {layer: SharePoint(budget, budget, budget)}
    odd = [layer for layer, _ in config.keep if layer not in known]
    if odd:
        raise MethodError(
            "keep names cuts that the model does not have.",
            given=f"after layers {odd}",
            expected=f"some of {known}",
        )
    last = config.keep[-1][1]
    found = {}
    for layer, share in config.keep:
        point = SharePoint(share, share, last)
        budgets, shares = zip(*point.table(), strict=True)
        found[layer] = SharePoint(float(np.interp(budget, budgets, shares)), share, last)
    return found
