"""Budgets by method, and one adapter for all of them: what a user gives beside `method=`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from ...config import AdapterConfig, Budget, Budgets, Flops
from ...errors import BudgetError, MethodError
from ...models.configs.catalogue import kind_of

_ADAPTER_FIELDS = tuple(field.name for field in dataclasses.fields(AdapterConfig))


def budgets_by_method(configs: Sequence[AdapterConfig], budget: Budgets | None) -> dict[str, Budget | None]:
    """Method → its budget as given, None for its default.

    Raises:
        BudgetError: one number for several methods, or a budget for a method that is not among them.
    """
    names = [kind_of(config) for config in configs]
    if budget is None:
        return dict.fromkeys(names)
    if not isinstance(budget, Mapping):
        if len(names) > 1:
            raise BudgetError(
                "Several methods need a budget each.",
                given=f"budget={budget!r} for {', '.join(names)}",
                expected="a dict by method; what it leaves out takes the method's default",
                remedy=f"pass for example budget={{{names[0]!r}: {budget!r}}}",
            )
        return {names[0]: budget}
    given = {str(name).removesuffix("+"): value for name, value in budget.items()}
    unknown = [name for name in given if name not in names]
    if unknown:
        raise BudgetError(
            "There is a budget for a method that is not used.", given=", ".join(unknown), expected=", ".join(names)
        )
    return {name: given.get(name) for name in names}


def without_flops(budget: Budgets | None) -> Budgets | None:
    """The budgets that need no data: those in FLOPs are spent later, when there are gates and data to choose by."""
    if isinstance(budget, Mapping):
        return {name: None if isinstance(value, Flops) else value for name, value in budget.items()}
    return None if isinstance(budget, Flops) else budget


def flops_by_method(configs: Sequence[AdapterConfig], budget: Budgets | None) -> dict[str, Flops]:
    """Method → its budget in FLOPs, of those that have one.

    Raises:
        BudgetError: as `budgets_by_method`.
    """
    given = budgets_by_method(configs, budget).items()
    return {name: value for name, value in given if isinstance(value, Flops)}


def with_one_adapter(configs: Sequence[AdapterConfig], rank: int | None) -> tuple[AdapterConfig, ...]:
    """The configs with the adapter that they share: its options may be given in one config, the rank beside them.

    Raises:
        MethodError: configs that describe different adapters, or a rank out of range.
    """
    if rank is not None:
        configs = [dataclasses.replace(config, rank=rank) for config in configs]
    chosen: dict[str, object] = {}
    for config in configs:
        standard = type(config)()
        for field in _ADAPTER_FIELDS:
            value = getattr(config, field)
            if value == getattr(standard, field):
                continue
            if chosen.setdefault(field, value) != value:
                raise MethodError(
                    "Methods on one model share one adapter.",
                    given=f"{field}={chosen[field]!r} and {field}={value!r}",
                    expected="adapter options in one config, or the same in all",
                )
    return tuple(dataclasses.replace(config, **chosen) for config in configs)  # type: ignore[arg-type]  # its own fields
