"""Gates that training left open: budgets in FLOPs are spent, and gates that were never trained are fitted, on data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from .config import Budgets
from .errors import UntrainedGateError
from .passes.gated import GatedModel
from .passes.methods.budgets import flops_by_method


def spend_flops(
    gated: GatedModel,
    budget: Budgets | None,
    batches: Sequence[Mapping[str, Tensor]] | None,
    *,
    progress: bool | None = None,
) -> None:
    """Spend the budgets that are in FLOPs, in place: cuts are chosen and gated anew; see `Method.spend`.

    Raises:
        BudgetError: a method that spends none, no data, or FLOPs that nothing costs.
    """
    for name, flops in flops_by_method([method.config for method in gated.methods.values()], budget).items():
        gated.methods[name].spend(gated, flops, batches, show=progress)


def fit_untrained(
    gated: GatedModel,
    batches: Sequence[Mapping[str, Tensor]] | None,
    *,
    steps: int,
    progress: bool | None = None,
) -> None:
    """Fit the gates that were never trained, method after method; those that keep everything need none.

    How well that went stands in the report: a note for people, `facts["fitted"][method]` for programs.

    Raises:
        UntrainedGateError: there is no data to fit them on.
    """
    for name, method in gated.methods.items():
        graph = gated.graph_module
        if method.budget == method.limit(graph) or method.is_trained(graph):
            continue
        if batches is None:
            raise UntrainedGateError(
                "The model's gates were never trained, and there is no data to fit them on.",
                given=f"gates of {name} with 0 updates, data=None",
                expected="a trained model, or unlabelled batches",
                remedy="call schedule.step() after each optimiser step while training, or pass data=[batch, …]",
            )
        quality = method.fit(gated, batches, steps=steps, show=progress)
        gated.report = gated.report.extended(
            notes=(str(quality),), facts={"fitted": {**_fitted(gated), name: quality.to_json(method.budget)}}
        )


def _fitted(gated: GatedModel) -> Mapping[str, object]:
    """What the report says of gates fitted so far, by method."""
    found = gated.report.facts.get("fitted", {})
    return found if isinstance(found, Mapping) else {}
