"""Calibrate: held-out batches → predictors fitted again, the share that cuts really keep, and κ for every budget.

Cut after cut, as states at a later cut know what the earlier ones dropped:
    scores of the full forward ─▶ fit the predictor on the states at the cut ─▶ histogram of deployed scores ─▶ κ(ρ)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn

from ...models.hard_token_gate import HardTokenGate
from ...models.score_histogram import ScoreHistogram
from ...models.score_predictor import fit_predictor
from ...progress import track
from ..graph.signature import signature_of

Batches = Sequence[Mapping[str, Tensor]]

SHARES = tuple(round(0.05 * step, 2) for step in range(1, 21))
_MOST_TOKENS = 50_000  # states that a predictor is fitted on
FIT_STEPS = 400


@dataclass(frozen=True)
class CutCalibration:
    """One cut on the calibration data.

    Attributes:
        layer: after which; share: of the original tokens that stay; deviation: its standard deviation over examples.
        predictor_error: mean squared error of log ŝ; None for scores of the path.
        table: (budget, κ) pairs; empty where too few tokens were seen, or the cut chooses by top-k.
    """

    layer: int
    share: float
    deviation: float
    predictor_error: float | None
    table: tuple[tuple[float, float], ...] = ()


@dataclass
class CutView:
    """What a hard gate was called with on the data, over real tokens that reached it.

    Attributes:
        states: (N, d), thinned evenly where there are many; rows: which of all real tokens those are.
        totals, counts: of every example, tokens there were and tokens that stay.
    """

    states: list[Tensor] = field(default_factory=list)
    paths: list[Tensor] = field(default_factory=list)
    alive: list[Tensor] = field(default_factory=list)
    totals: list[Tensor] = field(default_factory=list)
    counts: list[Tensor] = field(default_factory=list)


def hard_gates(graph_module: fx.GraphModule) -> tuple[HardTokenGate, ...]:
    """The hard gates on tokens that a graph calls, cut by cut."""
    modules = (graph_module.get_submodule(str(n.target)) for n in graph_module.graph.find_nodes(op="call_module"))
    return tuple(module for module in modules if isinstance(module, HardTokenGate))


def calibrate_cuts(
    masked: fx.GraphModule,
    data: Batches,
    scores: Sequence[Tensor],
    *,
    select: str,
    steps: int = FIT_STEPS,
    show: bool | None = None,
) -> tuple[CutCalibration, ...]:
    """Fit and calibrate every hard gate of a masked graph, in place.

    Args:
        scores: ŝ of all layers batch by batch, (B,T), 0 at padding.
        select: "topk" or "threshold"; steps: of each predictor's fit.
    """
    found = []
    for gate in hard_gates(masked):
        seen = look_at(masked, gate, data, show=show)
        error = _fit(gate, seen, scores, steps)
        table = _table(gate, seen) if select == "threshold" else ()
        if table:
            gate.select_by(table)
        # Once more: what the gate keeps now that it is fitted.
        share, deviation = _kept(look_at(masked, gate, data, show=show))
        found.append(CutCalibration(gate.layer, share, deviation, error, table))
    return tuple(found)


def _fit(gate: HardTokenGate, seen: CutView, scores: Sequence[Tensor], steps: int) -> float | None:
    """Fit a gate's predictor; the error that is left, None where it has none."""
    if gate.predictor is None:
        return None
    wanted = torch.cat([score[alive] for score, alive in zip(scores, seen.alive, strict=True)])
    states = torch.cat(seen.states)
    stride = -(-len(states) // _MOST_TOKENS)
    return fit_predictor(gate.predictor, states[::stride], wanted[::stride], steps=steps)


def _kept(seen: CutView) -> tuple[float, float]:
    """(share of all tokens that stay, standard deviation of the examples' shares)."""
    counts, totals = torch.cat(seen.counts).double(), torch.cat(seen.totals).double()
    shares = counts / totals.clamp_min(1)
    return float(counts.sum() / totals.sum().clamp_min(1)), float(shares.std(correction=0))


@torch.no_grad()
def _table(gate: HardTokenGate, seen: CutView) -> tuple[tuple[float, float], ...]:
    """κ at round budgets, falling; empty while the histogram is cold."""
    histogram = ScoreHistogram()
    for index, alive in enumerate(seen.alive):
        state = seen.states[index]
        path = seen.paths[index] if seen.paths else None
        histogram.observe(gate.scores(state, path), gone=int(seen.totals[index].sum()) - int(alive.sum()))
    if histogram.is_cold:
        return ()
    shares = [(budget, float(gate.own_share(torch.tensor(budget)))) for budget in SHARES]
    return tuple((budget, histogram.level(share)) for budget, share in shares)


@torch.no_grad()
def look_at(masked: fx.GraphModule, gate: HardTokenGate, data: Batches, *, show: bool | None = None) -> CutView:
    """Run the data and keep what one gate sees and decides."""
    signature = signature_of(masked)
    with _watching(gate) as seen:
        for batch in track(data, f"calibrating the cut after layer {gate.layer}", show=show):
            masked(*signature.arrange(batch))
    return seen


@contextmanager
def _watching(gate: HardTokenGate) -> Iterator[CutView]:
    seen = CutView()

    def keep(_module: nn.Module, given: tuple[Tensor | None, ...], answer: tuple[Tensor, Tensor]) -> None:
        state, mask, total = given[:3]
        path = given[5] if len(given) > 5 else None  # noqa: PLR2004  # see HardTokenGate.forward
        if state is None or total is None:
            return
        alive = torch.ones(state.shape[:2], dtype=torch.bool, device=state.device) if mask is None else mask > 0
        seen.alive.append(alive)
        seen.states.append(state[alive])
        if path is not None:
            seen.paths.append(path[alive])
        seen.totals.append(total.cpu())
        seen.counts.append(answer[1].cpu())

    handle = gate.register_forward_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()
