"""What gates scored at every real token of calibration data, and the level above which a share of the scores lies.

A level moves every later site's states with the decisions of the earlier ones, so quantiles of what trained gates
score are a first guess only: the level is solved again on the states that hard gates at that level leave.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor, fx, nn

from ...progress import track
from ..graph.signature import signature_of
from .levels import NEAR, level_for, share_above

_ROUNDS = 4

Batches: TypeAlias = Sequence[Mapping[str, Tensor]]
#: Inputs of a gate's call → its scores there, (B, T).
Scorer: TypeAlias = Callable[[tuple[Tensor, ...]], Tensor]


@torch.no_grad()
def collect_scores(
    graph_module: fx.GraphModule,
    gates: Sequence[tuple[str, nn.Module, Scorer]],
    data: Batches,
    masks: Mapping[str, str],
    *,
    show: bool | None,
) -> dict[str, Tensor]:
    """Site → its scores at every real token of the data, (N,), on the CPU.

    Args:
        gates: site, the module to listen to, and how its inputs score; a module that is called twice counts twice.
        masks: site → name of the input that says which tokens are real, (B, T); without one all are.
    """
    signature = signature_of(graph_module)
    kept: dict[str, list[Tensor]] = {}
    with _recording(gates) as seen:
        for batch in track(data, "calibrating", show=show):
            seen.clear()
            inputs = signature.arrange(batch)
            graph_module(*inputs)
            named = dict(zip(signature.input_names, inputs, strict=True))
            for name, scores in seen:
                rows = scores if name not in masks else scores[named[masks[name]].bool()]
                kept.setdefault(name, []).append(rows.flatten().cpu())
    return {name: torch.cat(rows) for name, rows in kept.items()}


def meet_budget(
    scores_at: Callable[[float], dict[str, Tensor]], *, level: float, budget: float | None
) -> tuple[float, dict[str, Tensor]]:
    """The level that comes nearest to the budget, and the scores on the states that it leaves.

    Args:
        scores_at: level → scores of gates that are hard at it. level: the first guess, and the answer without a budget.
    """
    best = (math.inf, level, dict[str, Tensor]())
    for _ in range(_ROUNDS):
        scores = scores_at(level)
        error = 0.0 if budget is None else abs(share_above(scores, level) - budget)
        if error < best[0]:
            best = (error, level, scores)
        if budget is None or error <= NEAR:
            break
        level = level_for(scores, budget)
    return best[1:]


@contextmanager
def _recording(gates: Sequence[tuple[str, nn.Module, Scorer]]) -> Iterator[list[tuple[str, Tensor]]]:
    """(site, scores) of every call of a gate since the list was last cleared."""
    seen: list[tuple[str, Tensor]] = []
    handles = []
    for name, module, scorer in gates:

        def keep(
            _module: nn.Module, inputs: tuple[Tensor, ...], _: Tensor, name: str = name, scorer: Scorer = scorer
        ) -> None:
            seen.append((name, scorer(inputs)))

        handles.append(module.register_forward_hook(keep))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
