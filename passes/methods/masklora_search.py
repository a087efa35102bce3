"""Choose a schedule of cuts for a budget in FLOPs: of those that cost the budget, the one most faithful on data.

    candidates     one cut after each layer                 {ℓ: ρ}
                   two cuts, each keeping the same share    {ℓ₁: √ρ, ℓ₂: ρ}
                   of what reaches it
                   the shape of the given `keep`            shares to the power that its last share becomes ρ
    price          ρ of each by bisection, so that the cost model predicts the budget (`masklora_cost.py`)
    try            KL(full ‖ masked) of each on data, without compaction (`masklora_trials.py`)
    choose         the least KL; of equal ones the fewest cuts, then the earliest

A cut early and gentle, or late and hard, costs the same: which one hurts less depends on what the layers have gathered
by then, which is measured, not assumed. Geometric shares are those of DynamicViT (ρ, ρ², …).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from ...errors import BudgetError
from ...models.configs.masklora import MaskLoRA
from ...progress import track
from .masklora_cost import Keep, ScheduleCost
from .masklora_trials import Trials

_PAIRED = 8  # layers, evenly chosen, of which every pair is a candidate
_HALVINGS = 50  # of an interval: beyond float64 of the shares
LEAST_SHARE = 0.01  # of tokens, where the floor is lower


@dataclass(frozen=True)
class Shape:
    """Candidates that differ in ρ, the share that their last cut keeps.

    Attributes:
        layers: of the cuts, rising; powers: of ρ, at each; the last is 1.
    """

    layers: tuple[int, ...]
    powers: tuple[float, ...]

    def keep(self, share: float) -> Keep:
        """The schedule whose last cut keeps `share`."""
        return tuple((layer, share**power) for layer, power in zip(self.layers, self.powers, strict=True))


@dataclass(frozen=True)
class Trial:
    """One schedule: what it is predicted to cost, as a share of FLOPs, and its KL(full ‖ masked) on the data."""

    keep: Keep
    predicted: float
    divergence: float

    def to_json(self) -> dict[str, object]:
        """Plain data."""
        return {
            "keep": {str(layer): share for layer, share in self.keep},
            "predicted": self.predicted,
            "divergence": self.divergence,
        }

    def __str__(self) -> str:
        return ", ".join(f"{share:.1%} after layer {layer}" for layer, share in self.keep)


@dataclass(frozen=True)
class ScheduleChoice:
    """What a budget in FLOPs buys.

    Attributes:
        asked: the budget; chosen: the schedule; trials: all that were tried.
        whole: FLOPs of the chosen one in whole tokens on the data; least: the lowest budget that any candidate meets.
    """

    asked: float
    chosen: Trial
    trials: tuple[Trial, ...]
    whole: float
    least: float

    def to_json(self) -> dict[str, object]:
        """Plain data for a report's facts."""
        return {
            "flops": self.asked,
            **self.chosen.to_json(),
            "predicted_whole_tokens": self.whole,
            "least_flops": self.least,
            "candidates": [trial.to_json() for trial in self.trials],
        }

    def __str__(self) -> str:
        return (
            f"masklora: {self.asked:.1%} of the FLOPs buy a schedule that keeps {self.chosen}: predicted "
            f"{self.chosen.predicted:.1%} ({self.whole:.1%} in whole tokens), KL {self.chosen.divergence:.4f}, the "
            f"least of {len(self.trials)} candidates"
        )


def choose_schedule(trials: Trials, config: MaskLoRA, asked: float, *, show: bool | None = None) -> ScheduleChoice:
    """The most faithful schedule that is predicted to cost `asked` of the FLOPs without cuts.

    Args:
        config: the options: its floor bounds shares from below, its `keep` is the shape of one candidate.

    Raises:
        BudgetError: no candidate costs as little, or nothing would be saved.
    """
    floor = max(config.floor, LEAST_SHARE)
    shapes = candidates(trials.layers, config.keep)
    least = min(trials.cost.share(shape.keep(floor)) for shape in shapes)
    if not least <= asked < 1:
        raise BudgetError(
            "No schedule of cuts costs this share of the model's FLOPs.",
            given=f"Flops({asked:g})",
            expected=f"{math.ceil(least * 1000) / 1000:g} to less than 1 (cuts after layers "
            f"{', '.join(map(str, trials.layers))}, none keeping less than {floor:g} of the tokens)",
            remedy="ask for a share in between" if asked < 1 else 'pass budget="100%" to keep every token',
        )
    priced = [(shape.keep(share), share) for shape in shapes if (share := share_for(shape, asked, trials.cost, floor))]
    rows = [
        Trial(keep, trials.cost.share(keep), trials.divergence(keep))
        for keep, _ in track(priced, "trying schedules of cuts", show=show)
    ]
    chosen = min(rows, key=lambda row: (row.divergence, len(row.keep), row.keep))
    return ScheduleChoice(asked, chosen, tuple(rows), trials.cost.share(chosen.keep, whole=True), least)


def candidates(layers: Sequence[int], given: Keep | None) -> tuple[Shape, ...]:
    """One cut, then two cuts, by rising layer; then the shape of a given schedule that is none of these."""
    found = [Shape((layer,), (1.0,)) for layer in layers]
    spread = np.unique(np.linspace(0, len(layers) - 1, min(len(layers), _PAIRED)).round())
    found += [Shape(pair, (0.5, 1.0)) for pair in combinations([layers[int(i)] for i in spread], 2)]
    return tuple(dict.fromkeys([*found, *_shape_of(layers, given)]))


def _shape_of(layers: Sequence[int], given: Keep | None) -> Iterable[Shape]:
    if given is None or given[-1][1] == 1 or not {layer for layer, _ in given} <= set(layers):
        return
    last = math.log(given[-1][1])
    yield Shape(tuple(layer for layer, _ in given), tuple(math.log(share) / last for _, share in given))


def share_for(shape: Shape, asked: float, cost: ScheduleCost, floor: float) -> float | None:
    """The largest ρ that is predicted to cost at most `asked`; None where even the floor costs more."""
    if cost.share(shape.keep(floor)) > asked:
        return None
    low, high = floor, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if cost.share(shape.keep(middle)) <= asked:
            low = middle
        else:
            high = middle
    return low
