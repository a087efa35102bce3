"""Which sites to train next: a trained run's token sparsity says which modules matter (TS-PEFT, §4.3).

    schedule = gated.schedule(steps, optimizer)  …train…
    paths = select_sites(gated, "low_sparsity", 0.5, data=batches)
    gatefx.prepare(model, TSPEFT(target_modules=paths), …)

"low_sparsity" keeps the sites with the lowest sparsity, "high_sparsity" the others, "large_ratio" those whose mean
‖M(x)‖/‖W0 x‖ is largest (table 4's S_low, S_high and norm_relative).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...errors import InputError, MethodError
from ...models.task_loss import LABEL_NAMES
from ..chain import Chain
from ..find.thresholds import thresholds_of
from ..gate.update_threshold import masks_of
from ..harden.freeze import FreezeRegularization
from ..harden.levels import share_above
from ..harden.threshold_levels import collect_excess

if TYPE_CHECKING:
    from ..gated import GatedModel

RULES = ("low_sparsity", "high_sparsity", "large_ratio")


def select_sites(
    model: GatedModel, rule: str, share: float, *, data: Iterable[Mapping[str, Tensor]], show: bool | None = None
) -> tuple[str, ...]:
    """Paths of the chosen share of the sites, in graph order, fit to be `target_modules`; of equal ones the earlier.

    Args:
        model: trained with tspeft; rule: one of `RULES`; share: of the sites, in (0, 1], rounded up.
        data: batches to measure on; labels are ignored.

    Raises:
        MethodError: no thresholds, or an unknown rule; InputError: no share, or no batch.
    """
    gates = thresholds_of(model.graph_module)
    if not gates:
        raise MethodError(
            "The model has no token thresholds to choose sites by.",
            given=f"gates of {', '.join(model.methods)}",
            expected='a model prepared and trained with method="tspeft"',
        )
    if rule not in RULES:
        raise MethodError(f"There is no rule {rule!r}.", given=f"rule={rule!r}", expected=", ".join(RULES))
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
        raise InputError("A share of the sites is kept.", given=f"share={share!r}", expected="a number in (0, 1]")
    scores = _scores(model, rule, data, show)
    ranked = sorted(scores, key=lambda name: -scores[name])
    kept = set(ranked[: math.ceil(share * len(ranked))])
    return tuple(name for name in scores if name in kept)


def site_sparsity(
    model: GatedModel, data: Iterable[Mapping[str, Tensor]], *, show: bool | None = None
) -> dict[str, float]:
    """Site → share of the real tokens that skip its update on the data (Eq. 21), in graph order.

    Raises:
        InputError: no batch.
    """
    excess = _excess(model, data, show)
    levels = {name: float(gate.level) for name, gate in thresholds_of(model.graph_module).items()}
    return {name: 1 - share_above({name: values}, levels[name]) for name, values in excess.items()}


def _scores(model: GatedModel, rule: str, data: Iterable[Mapping[str, Tensor]], show: bool | None) -> dict[str, float]:
    if rule == "large_ratio":
        gates = thresholds_of(model.graph_module)
        return {name: float((v + gates[name].tau.cpu()).mean()) for name, v in _excess(model, data, show).items()}
    sparsity = site_sparsity(model, data, show=show)
    return {name: value if rule == "high_sparsity" else -value for name, value in sparsity.items()}


@torch.no_grad()
def _excess(model: GatedModel, data: Iterable[Mapping[str, Tensor]], show: bool | None) -> dict[str, Tensor]:
    """Site → r − τ at every real token, by the model as it is trained, without dropout."""
    batches: Sequence[Mapping[str, Tensor]] = [
        {name: value for name, value in batch.items() if name not in LABEL_NAMES} for batch in data
    ]
    if not batches:
        raise InputError("data holds no batch.", given="an empty iterable", expected="batches of inputs")
    frozen = Chain(model.graph_module).then(FreezeRegularization()).graph
    modes = {gate: gate.training for gate in thresholds_of(frozen).values()}
    for gate in modes:
        gate.eval()
    try:
        return collect_excess(frozen, batches, masks_of(frozen), show=show)
    finally:
        for gate, training in modes.items():
            gate.train(training)
