"""Try schedules of cuts on one masked graph: a hard gate at every possible cut, of which a schedule shuts some tokens.

    plain graph ─▶ a gate at every cut ─▶ FoldAdapters ─▶ HardenTokenGates ─▶ masked     KL(full ‖ masked) of a schedule
                                                                    └─▶ CompactTokens    its FLOPs (`masklora_cost.py`)

A gate that keeps every token is the masked graph without it, so one graph stands for all schedules. Predictors are
fitted once, on states that no cut touched: between fits of their own, two cuts would differ by luck.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import fx, nn

from ...config import AdapterConfig
from ...errors import MethodError, SiteError
from ...models.configs.masklora import MaskLoRA
from ...models.families import ATTENTION_MASK
from ...models.hard_token_gate import HardTokenGate
from ...models.score_predictor import ScorePredictor
from ...models.token_gate import SharePoint, TokenGate
from ...models.token_selection import MonotoneTable
from ..chain import Chain
from ..compact.tokens import CompactTokens
from ..find.adapters import Miss
from ..find.last_token import answered_tokens
from ..find.layers import Cut, find_cuts
from ..gate.token_cuts import schedule_of
from ..gate.token_gate import InsertTokenGates
from ..gate.token_scores import FeedTokenGates, required_layers, token_gates
from ..graph.signature import signature_of
from ..harden.distill import output_divergence, student_and_teacher
from ..harden.freeze import FreezeRegularization
from ..harden.token_calibration import calibrate_cuts, hard_gates
from ..harden.token_gate import HardenTokenGates
from ..simplify.fold_adapters import FoldAdapters
from .masklora_cost import Batches, Keep, ScheduleCost
from .masklora_deploy import full_answers, scores_of

if TYPE_CHECKING:
    from ..gated import GatedModel

_MOST_BATCHES = 16  # that predictors and divergences are taken from; lengths are those of all


class Trials:
    """Schedules of a gated model, priced and tried. The model is left as it is.

    Args:
        config: the options, whose `keep` says after which layers alone it may be cut; data: unlabelled batches.

    Raises:
        SiteError: the model's tokens cannot be dropped after any of these layers.
    """

    def __init__(self, model: GatedModel, config: MaskLoRA, data: Batches, *, show: bool | None) -> None:
        _, plain = student_and_teacher(model, config.method)
        few = _evenly(data, _MOST_BATCHES)
        chain = _gated_everywhere(Chain(plain).then(FreezeRegularization()), config, model)
        self._answers = full_answers(chain.graph, few, show=show)
        masked = chain.then(FoldAdapters(), HardenTokenGates(1.0, lambda gate: HardTokenGate(gate, config=config)))
        self._masked = masked.graph
        self._gates = {gate.layer: gate for gate in hard_gates(masked.graph)}
        self._keep(())
        calibrate_cuts(masked.graph, few, scores_of(self._answers, config), select="topk", show=show)
        arrange = signature_of(masked.graph).arrange
        self._inputs = [(arrange(b), answered_tokens(masked.graph, b.get(ATTENTION_MASK))) for b in few]
        compacted = masked.then(CompactTokens())
        self.layers = tuple(n for n in self._gates if f"hard_token_gate_{n}" in compacted.reports[-1].fired)
        if not self.layers:
            raise SiteError(
                "No cut of the model can be compacted, so none saves FLOPs.",
                given="; ".join(f"{row.where}: {row.reason}" for row in compacted.reports[-1].declined),
                expected="a model whose layers can run on the kept tokens",
            )
        self.cost = ScheduleCost(compacted.graph, _cuts(plain)[0], data)

    @torch.no_grad()
    def divergence(self, keep: Keep) -> float:
        """Mean KL(full ‖ masked) of a schedule over the batches, as `output_divergence`."""
        self._keep(keep)
        rows = [
            float(output_divergence(answer.outputs, self._masked(*tensors), mask))
            for answer, (tensors, mask) in zip(self._answers, self._inputs, strict=True)
        ]
        return float(np.mean(rows))

    def predictors(self, keep: Keep) -> Mapping[int, ScorePredictor]:
        """The fitted predictors of a schedule's cuts."""
        found = {layer: self._gates[layer].predictor for layer, _ in keep}
        return {layer: predictor for layer, predictor in found.items() if predictor is not None}

    def _keep(self, keep: Keep) -> None:
        """Have every gate keep its share, and the gates of other cuts everything."""
        shares = dict(keep)
        for layer, gate in self._gates.items():
            share = shares.get(layer, 1.0)
            gate.own_share = MonotoneTable(((0.0, share), (1.0, share))).to(gate.own_share.starts.device)


def _evenly(data: Batches, most: int) -> Batches:
    """At most so many batches, from the first to the last."""
    return [data[int(i)] for i in np.unique(np.linspace(0, len(data) - 1, min(len(data), most)).round())]


def _cuts(graph_module: fx.GraphModule) -> tuple[Cut, ...]:
    cuts = find_cuts(graph_module)
    if isinstance(cuts, Miss):
        raise SiteError("The model has no cut.", given=f"{cuts.where}: {cuts.reason}")
    return cuts


def _gated_everywhere(chain: Chain, config: MaskLoRA, model: GatedModel) -> Chain:
    """A gate after every layer that may be cut: those of trained gates, those that `keep` names, else all that can be.

    Raises:
        SiteError: none can be.
    """
    trained = {g.layer: g for _, g in token_gates(model.graph_module) if int(g.updates) > 0}
    cuts = _cuts(chain.graph)
    scored = required_layers(chain.graph)
    if trained:
        layers = tuple(trained)
    elif config.keep is not None:
        layers = tuple(schedule_of(config, config.keep[-1][1], cuts))
    else:
        layers = tuple(cut.layer for cut in cuts)
    make = _MakeTrialGate(trained, config.kinds * len(scored))
    # What stands in the way of a cut stands after it: later cuts may be free of it.
    for index in range(len(layers)):
        gated = chain.then(InsertTokenGates(config, layers[index:], make))
        if gated.reports[-1].fired:
            return gated.then(FeedTokenGates(config))
    raise SiteError(
        "The model's tokens cannot be dropped after any layer.",
        given="; ".join(f"{item.where}: {item.reason}" for item in gated.reports[-1].declined),
        expected="layers after which only attention and masked pools mix tokens",
    )


@dataclass(frozen=True)
class _MakeTrialGate:
    """Makes a cut's gate, a copy of the trained one or a new one that draws nothing from the global generator."""

    trained: Mapping[int, TokenGate]
    layers: int

    def __call__(self, config: AdapterConfig, *, layer: int, width: int, kept: tuple[int, ...]) -> nn.Module:
        if not isinstance(config, MaskLoRA):
            raise MethodError(f"A {type(config).__name__} describes no gates on tokens.", expected="MaskLoRA")
        if layer in self.trained:
            return copy.deepcopy(self.trained[layer])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            whole = SharePoint(1.0, 1.0, 1.0)
            return TokenGate(config, layer=layer, width=width, kept=kept, share=whole, layers=self.layers)
