"""What a user may ask for: budgets, and one frozen config per method whose fields are its documented options."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from .errors import BudgetError, MethodError

Budget = int | float | str
Pool = Literal["mean", "max", "attention", "cls"]
Heads = Literal["per_module", "per_layer", "shared"]
RouterInput = Literal["first_site", "site"]
Gate = Literal["topk", "hard_concrete", "soft"]
RankRule = Literal["coverage", "fixed"]
Regularizer = Literal["l0", "kl", "entropy"]
TemperatureSchedule = Literal["cosine", "linear", "constant"]

METHODS = ("ccm",)
DEFAULT_BUCKETS = (2, 4, 6, 8, 10, 12, 16)


@dataclass(frozen=True)
class CCM:
    """Context-conditioned rank routing (CCM-LoRA, §2). Every field is an option of the method.

    Adapter (used when the model has none of its own):
        rank: r, the rank directions a site owns.
        alpha: LoRA's α; the update is scaled by α/r. None means 2·rank.
        lora_dropout: dropout on the adapter's input while training.
        target_modules: "all-linear", a suffix, several suffixes, or a regular expression (PEFT's rules).
        exclude_modules: taken out of target_modules again, by the same rules.
        layers_to_transform: adapt only these layers, by number.
        train_modules: modules trained whole beside the adapters. None means the head (classifier, score, qa_outputs).

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

    rank: int = 16
    alpha: float | None = None
    lora_dropout: float = 0.0
    target_modules: str | tuple[str, ...] = "all-linear"
    exclude_modules: str | tuple[str, ...] | None = None
    layers_to_transform: tuple[int, ...] | None = None
    train_modules: tuple[str, ...] | None = None
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
        for field, allowed in _CHOICES.items():
            _one_of(field, getattr(self, field), allowed)
        for field, least in _AT_LEAST.items():
            _at_least(field, getattr(self, field), least)
        for field in ("target_modules", "exclude_modules", "layers_to_transform", "train_modules"):
            value = getattr(self, field)
            if value is not None and not isinstance(value, str):
                object.__setattr__(self, field, _several(field, value))
        object.__setattr__(self, "buckets", _buckets(self.buckets))
        self._check_ranges()

    def _check_ranges(self) -> None:
        if self.alpha is not None and not _is_number(self.alpha, above=0):
            raise MethodError("ccm's alpha is out of range.", given=f"alpha={self.alpha!r}", expected="more than 0")
        if self.coverage_rate > 1:
            raise MethodError(
                "ccm's coverage_rate is out of range.", given=f"coverage_rate={self.coverage_rate!r}", expected="0 to 1"
            )
        if not 0.0 <= self.lora_dropout < 1.0:
            raise MethodError("lora_dropout is a probability.", given=repr(self.lora_dropout), expected="0 ≤ p < 1")
        if not 0.0 < self.temperature_min <= self.temperature:
            raise MethodError(
                "The temperature falls during training.",
                given=f"temperature={self.temperature!r}, temperature_min={self.temperature_min!r}",
                expected="0 < temperature_min ≤ temperature",
            )

    @property
    def scale_alpha(self) -> float:
        """LoRA's α, with its default 2·rank resolved."""
        return float(2 * self.rank if self.alpha is None else self.alpha)

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
_AT_LEAST: dict[str, float] = {
    "rank": 1,
    "prefix": 1,
    "d_router": 1,
    "k_min": 1,
    "penalty": 0,
    "penalty_rate": 0,
    "entropy_weight": 0,
    "smoothness": 0,
    "coverage_rate": 0,
}
_OPTIONAL = ("prefix", "d_router")
_WHOLE = ("rank", "prefix", "d_router", "k_min")


def _one_of(field: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        choices = ", ".join(map(repr, allowed))
        raise MethodError(f"ccm has no {field} {value!r}.", given=f"{field}={value!r}", expected=choices)


def _at_least(field: str, value: float | None, least: float) -> None:
    if value is None and field in _OPTIONAL:
        return
    whole = field in _WHOLE
    if not _is_number(value, above=None) or value is None or value < least or (whole and not isinstance(value, int)):
        kind = "an integer, " if whole else ""
        raise MethodError(
            f"ccm's {field} is out of range.", given=f"{field}={value!r}", expected=f"{kind}at least {least}"
        )


def _is_number(value: object, *, above: float | None) -> bool:
    """Whether a value is a finite number (no bool), and more than `above`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return False
    return above is None or value > above


def _several(field: str, value: object) -> tuple[object, ...]:
    if not isinstance(value, Iterable):
        raise MethodError(f"ccm's {field} is out of range.", given=f"{field}={value!r}", expected="one name or several")
    return tuple(value)


def _buckets(values: tuple[int, ...]) -> tuple[int, ...]:
    listed = tuple(values) if isinstance(values, Iterable) else ()
    if not listed or any(isinstance(b, bool) or not isinstance(b, int) or b < 1 for b in listed):
        raise MethodError("buckets are rank counts.", given=repr(values), expected="positive integers, e.g. (2, 4, 8)")
    return tuple(sorted(set(listed)))


def resolve_method(method: object) -> CCM:
    """The config that `method` names.

    Raises:
        MethodError: an unknown name, or an object that is no method config.
    """
    if isinstance(method, CCM):
        return method
    if method == "ccm":
        return CCM()
    raise MethodError(
        f"gatefx has no method {method!r}.",
        given=repr(method),
        expected=f"one of {', '.join(map(repr, METHODS))}, or a config object such as gatefx.CCM(rank=16)",
    )


def resolve_budget(budget: object, *, limit: int, unit: str = "ranks") -> float:
    """The budget as a number of `unit`, out of at most `limit`.

    An int counts units, a float in (0, 1] or a string such as "60%" is the share kept.

    Raises:
        BudgetError: anything else, or a budget outside [1, limit].
    """
    amount = _share(budget, limit) if isinstance(budget, (float, str)) else _count(budget)
    if amount is None or not math.isfinite(amount):
        raise _budget_error("A budget is a number of units or a share.", budget, limit, unit)
    if amount < 1:
        raise _budget_error(f"The budget keeps {amount:g} {unit}, less than one.", budget, limit, unit)
    if amount > limit:
        raise _budget_error(f"The budget asks for {amount:g} {unit} where there are {limit}.", budget, limit, unit)
    return amount


def _count(budget: object) -> float | None:
    if isinstance(budget, bool):
        return None
    try:
        return float(operator.index(budget))  # type: ignore[arg-type]  # refusing what is no integer is the point
    except TypeError:
        return None


def _share(budget: float | str, limit: int) -> float | None:
    if isinstance(budget, float):
        return budget * limit if budget <= 1 or math.isnan(budget) else None
    digits = budget.removesuffix("%")
    if digits == budget or digits != digits.strip():
        return None
    try:
        return float(digits) / 100 * limit
    except ValueError:
        return None


def _budget_error(problem: str, budget: object, limit: int, unit: str) -> BudgetError:
    return BudgetError(
        problem,
        given=f"budget={budget!r}",
        expected=f'an integer from 1 to {limit} ({unit}), a share such as 0.5 in (0, 1], or a string such as "60%"',
        remedy=f"pass for example budget={max(1, limit * 3 // 8)}",
    )
