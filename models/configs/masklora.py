"""MaskLoRA's options."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal, get_args

from ...config import AdapterConfig, is_number
from ...errors import MethodError

Scores = Literal["predicted", "path"]
Influence = Literal["hidden", "logits", "mixed"]
Aggregate = Literal["mean", "max"]
Select = Literal["topk", "threshold"]

_PAIR = 2


@dataclass(frozen=True)
class MaskLoRA(AdapterConfig):
    """Tokens chosen by the shift that LoRA gives them (MaskLoRA, §2). The adapter's own fields: see `AdapterConfig`.

    Cuts:
        keep: {after layer: share of the original tokens kept}, e.g. {1: 0.8, 2: 0.5}; None is one cut after a quarter
            of the layers, which keeps the budget.
        floor: ρ_min: no cut keeps less than this share.
        sinks, recent: how many first and last tokens of a decoder's prompt are always kept: attention rests on the
            first whatever they say, and what comes next hangs on the last, of which one always stays.

    Scores:
        scores: where deployed scores come from: "predicted" at the cut from the state there, "path" from the LoRA paths
            of the layers before the cut.
        influence: what LoRA shifts: "hidden" the layers' outputs, "logits" those of attention (low-rank factors alone),
            "mixed" the mean of both, each normalised.
        heads: "mean" or "max" of logit shifts.
        aggregate: over the scored layers.
        predictor_width: hidden width of the predictor.
        stop_gradient: no gradients through scores.

    Decision:
        recover_if_spike: run examples again with every token where the masked prediction's entropy is above P99 of
            those of the full model on the calibration data.
        select: "topk" keeps ⌈ρ·n⌉ of each example's n tokens, "threshold" those that score at least κ.

    Objective (Eq. 2), and how it changes over training:
        sparsity: λ of E‖m̃‖₀; consistency: γ of KL(full ‖ masked); concentration: η of Σ ŝ(1 − m̃).
        penalty: ρ of the budget's terms μ·(share − budget) + ρ·(share − budget)².
        penalty_rate: of the multiplier μ, which starts at 0.
        sharpness: a of the gate's logit a·(ŝ − b) to start from.
        momentum: β of the running κ and of the running clip.
        temperature, temperature_min: τ of the hard-concrete gate, linear.
    """

    method: ClassVar[str] = "masklora"
    deploy_fields: ClassVar[tuple[str, ...]] = ("select", "floor", "recover_if_spike")

    keep: tuple[tuple[int, float], ...] | None = None
    floor: float = 0.1
    sinks: int = 1
    recent: int = 1
    scores: Scores = "predicted"
    influence: Influence = "hidden"
    heads: Aggregate = "mean"
    aggregate: Aggregate = "mean"
    predictor_width: int = 64
    stop_gradient: bool = True
    select: Select = "topk"
    recover_if_spike: bool = False
    sparsity: float = 3e-4
    consistency: float = 0.3
    concentration: float = 0.3
    penalty: float = 5.0
    penalty_rate: float = 0.05
    sharpness: float = 20.0
    momentum: float = 0.9
    temperature: float = 2.0
    temperature_min: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep is not None:
            object.__setattr__(self, "keep", _schedule(self.keep))
        for field, allowed in _CHOICES.items():
            self.check_choice(field, allowed)
        self.check_number("predictor_width", least=1, whole=True)
        self.check_number("sinks", least=0, whole=True)
        self.check_number("recent", least=1, whole=True)
        for field in ("sparsity", "consistency", "concentration", "penalty", "penalty_rate"):
            self.check_number(field, least=0)
        for field in ("floor", "momentum"):
            self.check_number(field, least=0, most=1)
        if not is_number(self.sharpness, above=0):
            raise self.out_of_range("sharpness", "more than 0")
        for field in ("stop_gradient", "recover_if_spike"):
            if not isinstance(getattr(self, field), bool):
                raise self.out_of_range(field, "True or False")
        self._check_together()

    @property
    def kinds(self) -> int:
        """How many kinds of influence make a score."""
        return 2 if self.influence == "mixed" else 1

    def _check_together(self) -> None:
        """Refuse fields that exclude each other."""
        if self.scores == "path" and self.influence != "hidden":
            raise self.out_of_range("influence", "'hidden' where scores='path'")
        if not 0.0 < self.temperature_min <= self.temperature:
            raise MethodError(
                "The temperature falls during training.",
                given=f"temperature={self.temperature!r}, temperature_min={self.temperature_min!r}",
                expected="0 < temperature_min ≤ temperature",
            )


_CHOICES: dict[str, tuple[str, ...]] = {
    "scores": get_args(Scores),
    "influence": get_args(Influence),
    "heads": get_args(Aggregate),
    "aggregate": get_args(Aggregate),
    "select": get_args(Select),
}


def _schedule(given: object) -> tuple[tuple[int, float], ...]:
    """(layer, share) pairs by rising layer.

    Raises:
        MethodError: no schedule, or shares that rise.
    """
    pairs = given.items() if isinstance(given, Mapping) else given
    listed = [tuple(pair) for pair in pairs if isinstance(pair, Iterable)] if isinstance(pairs, Iterable) else []
    rows = sorted(pair for pair in listed if _is_cut(pair))
    layers, shares = [row[0] for row in rows], [row[1] for row in rows]
    falls = all(later <= earlier for earlier, later in pairwise(shares))
    if not rows or len(rows) != len(listed) or len(set(layers)) < len(layers) or not falls:
        raise MethodError(
            "keep is a schedule of cuts.",
            given=f"keep={given!r}",
            expected="{after layer: share of the tokens kept}, shares in (0, 1] that never rise, e.g. {1: 0.8, 2: 0.5}",
        )
    return tuple((int(layer), float(share)) for layer, share in rows)


def _is_cut(pair: tuple[object, ...]) -> bool:
    if len(pair) != _PAIR:
        return False
    layer, share = pair
    whole = isinstance(layer, int) and not isinstance(layer, bool) and layer >= 0
    return whole and is_number(share, above=0) and float(share) <= 1  # type: ignore[arg-type]  # is_number says so
