"""What every method's config shares: budgets, the adapter's own options, and the checks that refuse wrong values.

The configs themselves, one frozen dataclass a method, stand in `models/configs/`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from .errors import BudgetError, MethodError


@dataclass(frozen=True)
class Flops:
    """A budget in FLOPs for masklora: the share of the FLOPs without cuts that may be spent, e.g. `Flops(0.6)`.

    `gatefx.optimize` turns it into a schedule of cuts, by the cost model and by how faithful each is on `data`.

    Raises:
        BudgetError: no positive number.
    """

    share: float

    def __post_init__(self) -> None:
        if not is_number(self.share, above=0):
            raise BudgetError(
                "A budget in FLOPs is a share.",
                given=f"Flops({self.share!r})",
                expected="a number above 0 and below 1, of the FLOPs of the model that keeps every token",
                remedy="pass for example budget=gatefx.methods.Flops(0.6)",
            )


Budget = int | float | str | Flops
#: One budget, or of several methods those given, by name.
Budgets = Budget | Mapping[str, Budget | None]


@dataclass(frozen=True)
class AdapterConfig:
    """The adapter a method attaches where a model has none of its own. Every method's config has these fields.

    Attributes:
        rank: r, the rank directions a site owns.
        alpha: LoRA's α; the update is scaled by α/r. None means 2·rank.
        lora_dropout: dropout on the adapter's input while training.
        target_modules: "all-linear", a suffix, several suffixes, or a regular expression (PEFT's rules).
        exclude_modules: taken out of target_modules again, by the same rules.
        layers_to_transform: adapt only these layers, by number.
        train_modules: modules trained whole beside the adapters. None means the head (classifier, score, qa_outputs).

    Raises:
        MethodError: a value out of range.
    """

    #: The method's name in errors, reports and files.
    method: ClassVar[str] = "lora"
    #: Fields that only deployment reads: `optimize` may be given others than the model was trained with.
    deploy_fields: ClassVar[tuple[str, ...]] = ()

    rank: int = 16
    alpha: float | None = None
    lora_dropout: float = 0.0
    target_modules: str | tuple[str, ...] = "all-linear"
    exclude_modules: str | tuple[str, ...] | None = None
    layers_to_transform: tuple[int, ...] | None = None
    train_modules: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        self.check_number("rank", least=1, whole=True)
        if self.alpha is not None and not is_number(self.alpha, above=0):
            raise self.out_of_range("alpha", "more than 0")
        self.check_number("lora_dropout", least=0, most=1)
        if self.lora_dropout == 1:
            raise self.out_of_range("lora_dropout", "a probability, 0 ≤ p < 1")
        for field in ("target_modules", "exclude_modules", "layers_to_transform", "train_modules"):
            value = getattr(self, field)
            if value is not None and not isinstance(value, str):
                object.__setattr__(self, field, self._several(field, value))
            elif field == "train_modules" and value is not None:
                # One name, not its letters and not every module whose name is a part of it.
                object.__setattr__(self, field, (value,))

    @property
    def scale_alpha(self) -> float:
        """LoRA's α, with its default 2·rank resolved."""
        return float(2 * self.rank if self.alpha is None else self.alpha)

    def check_choice(self, field: str, allowed: tuple[str, ...]) -> None:
        """Refuse a field whose value is none of `allowed`.

        Raises:
            MethodError: naming the field and the choices.
        """
        value = getattr(self, field)
        if value not in allowed:
            choices = ", ".join(map(repr, allowed))
            raise MethodError(f"{self.method} has no {field} {value!r}.", given=f"{field}={value!r}", expected=choices)

    def check_number(
        self, field: str, *, least: float, most: float = math.inf, whole: bool = False, optional: bool = False
    ) -> None:
        """Refuse a field that is no finite number in [least, most]; `whole` wants an int, `optional` allows None.

        Raises:
            MethodError: naming the field and the range.
        """
        value = getattr(self, field)
        if value is None and optional:
            return
        if not is_number(value) or not least <= value <= most or (whole and not isinstance(value, int)):
            kind = "an integer, " if whole else ""
            span = f"at least {least:g}" if math.isinf(most) else f"{least:g} to {most:g}"
            raise self.out_of_range(field, f"{kind}{span}")

    def out_of_range(self, field: str, expected: str) -> MethodError:
        """The error for a field with a value that makes no sense."""
        value = getattr(self, field)
        return MethodError(f"{self.method}'s {field} is out of range.", given=f"{field}={value!r}", expected=expected)

    def _several(self, field: str, value: object) -> tuple[object, ...]:
        if not isinstance(value, Iterable):
            raise self.out_of_range(field, "one name or several")
        return tuple(value)


def is_number(value: object, *, above: float | None = None) -> bool:
    """Whether a value is a finite number (no bool), and more than `above`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        if not math.isfinite(value):
            return False
    except OverflowError:  # an integer that no float can be
        return False
    return above is None or value > above


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


def resolve_share(budget: object, *, unit: str) -> float:
    """The budget as a share in (0, 1] of `unit`: a float, a string such as "60%", or 1 for all.

    Raises:
        BudgetError: anything else.
    """
    share = _share(budget, 1) if isinstance(budget, (float, str)) else _count(budget)
    if share is None or not 0 < share <= 1:
        raise BudgetError(
            "This budget is a share.",
            given=f"budget={budget!r}",
            expected=f'a number in (0, 1] or a string such as "60%" ({unit})',
            remedy="pass for example budget=0.5",
        )
    return share


def _count(budget: object) -> float | None:
    if isinstance(budget, bool):
        return None
    try:
        return float(operator.index(budget))  # type: ignore[arg-type]  # refusing what is no integer is the point
    except (TypeError, OverflowError):
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
