"""CCM-LoRA's options."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from ...config import AdapterConfig
from ...errors import MethodError

Pool = Literal["mean", "max", "attention", "cls"]
Heads = Literal["per_module", "per_layer", "shared"]
RouterInput = Literal["first_site", "site"]
Gate = Literal["topk", "hard_concrete", "soft"]
RankRule = Literal["coverage", "fixed"]
Regularizer = Literal["l0", "kl", "entropy"]
TemperatureSchedule = Literal["cosine", "linear", "constant"]

DEFAULT_BUCKETS = (2, 4, 6, 8, 10, 12, 16)


@dataclass(frozen=True)
class CCM(AdapterConfig):
    """Context-conditioned rank routing (CCM-LoRA, §2). The adapter's own fields stand in `AdapterConfig`.

    Router:
        pool: how token states become one vector per example. Padding never enters a pool.
        prefix: pool only the first `prefix` real tokens; None pools them all.
        heads: one output head per site, per layer, or one for all.
        router_input: pool the state entering the first site, or each site's own input.
        d_router: hidden width; None means 256 for d ≤ 1024, else 512.

    Decision:
        gate: "topk" (straight-through), "hard_concrete" (Louizos et al.), or "soft".
        k: "coverage" (least k whose probabilities sum to c) or "fixed" (every example gets `budget` ranks); topk only.
        k_min: fewest ranks an example may get at a site.
        buckets: deployed k is rounded up to the next of these.

    Objective:
        regularizer: "l0" (Eq. 5), "kl" (Eq. 14) or "entropy" (Eq. 6 alone).
        penalty: λ's starting value; a dual variable from then on.
        penalty_rate: η_λ in λ ← max(0, λ + η_λ·(E k − budget)).
        entropy_weight: β of Eq. 6.
        smoothness: weight of the variance of k within a batch (§6.4).
        coverage_rate: how far c moves each step towards the c at which the last batch would have met the budget.
        temperature, temperature_min, schedule: τ over training (appendix B.2).
    """

    method: ClassVar[str] = "ccm"
    deploy_fields: ClassVar[tuple[str, ...]] = ("buckets",)

    pool: Pool = "mean"
    prefix: int | None = None
    heads: Heads = "per_module"
    router_input: RouterInput = "first_site"
    d_router: int | None = None
    gate: Gate = "topk"
    k: RankRule = "coverage"
    k_min: int = 1
    buckets: tuple[int, ...] = DEFAULT_BUCKETS
    regularizer: Regularizer = "l0"
    penalty: float = 0.1
    penalty_rate: float = 0.01
    entropy_weight: float = 0.01
    smoothness: float = 0.0
    coverage_rate: float = 0.25
    temperature: float = 1.0
    temperature_min: float = 0.2
    schedule: TemperatureSchedule = "cosine"

    def __post_init__(self) -> None:
        super().__post_init__()
        for field, allowed in _CHOICES.items():
            self.check_choice(field, allowed)
        for field in ("prefix", "d_router"):
            self.check_number(field, least=1, whole=True, optional=True)
        self.check_number("k_min", least=1, whole=True)
        for field in ("penalty", "penalty_rate", "entropy_weight", "smoothness"):
            self.check_number(field, least=0)
        self.check_number("coverage_rate", least=0, most=1)
        object.__setattr__(self, "buckets", _buckets(self.buckets))
        if not 0.0 < self.temperature_min <= self.temperature:
            raise MethodError(
                "The temperature falls during training.",
                given=f"temperature={self.temperature!r}, temperature_min={self.temperature_min!r}",
                expected="0 < temperature_min ≤ temperature",
            )

    def hidden_width(self, width: int) -> int:
        """d_router for states of `width` channels (appendix B.2)."""
        small, large, limit = 256, 512, 1024
        return self.d_router or (small if width <= limit else large)


_CHOICES: dict[str, tuple[str, ...]] = {
    "pool": get_args(Pool),
    "heads": get_args(Heads),
    "router_input": get_args(RouterInput),
    "gate": get_args(Gate),
    "k": get_args(RankRule),
    "regularizer": get_args(Regularizer),
    "schedule": get_args(TemperatureSchedule),
}


def _buckets(values: tuple[int, ...]) -> tuple[int, ...]:
    listed = tuple(values) if isinstance(values, Iterable) else ()
    if not listed or any(isinstance(b, bool) or not isinstance(b, int) or b < 1 for b in listed):
        raise MethodError("buckets are rank counts.", given=repr(values), expected="positive integers, e.g. (2, 4, 8)")
    return tuple(sorted(set(listed)))
