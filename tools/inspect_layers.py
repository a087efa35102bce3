"""What became of each transformer layer: sites, effective rank, tokens kept, share of updates, gate means."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.markup import escape
from rich.table import Table

from ..passes.find.layer_names import layer_of

_OUTSIDE = "outside the layers"


@dataclass(frozen=True)
class LayerRow:
    """One layer of a deployed model; means are over its sites.

    Attributes:
        sites: how many adapter sites; forms: how many took each form.
        mean_rank: effective rank; dropped and merged sites count none and all of theirs.
        retention: share of the real tokens that enter the layer, on the calibration data.
        update_share: share of tokens that take the update; sparsity is what is left.
        gate_mean: of soft gates; None where there are none.
    """

    layer: str
    sites: int
    forms: Mapping[str, int]
    mean_rank: float
    retention: float
    update_share: float
    gate_mean: float | None


def layer_rows(sites: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> list[LayerRow]:
    """Rows in the order of the layers.

    Args:
        sites: as a manifest lists them; facts: of its report, by method.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for site in sites:
        groups.setdefault(layer_of(site["name"]) or _OUTSIDE, []).append(site)
    return [_row(layer, members, _retention(layer, facts)) for layer, members in groups.items()]


def layer_table(rows: Sequence[LayerRow]) -> Table:
    """The rows for a console; a column that says nothing about this model is left out."""
    table = Table(title=f"{len(rows)} layers", title_justify="left", box=None, pad_edge=False)
    table.add_column("layer")
    shown = [column for column in _COLUMNS if column.title == "sites" or any(column.says(row) for row in rows)]
    for column in shown:
        table.add_column(column.title, justify="right")
    table.add_column("forms")
    for row in rows:
        forms = ", ".join(f"{count} {form}" for form, count in row.forms.items())
        table.add_row(escape(row.layer), *(column.text(row) for column in shown), forms)
    return table


@dataclass(frozen=True)
class _Column:
    title: str
    field: str
    form: str
    silent: float | None

    def text(self, row: LayerRow) -> str:
        value = getattr(row, self.field)
        return "" if value is None else format(value, self.form)

    def says(self, row: LayerRow) -> bool:
        """Whether the value is another than that of a model without such gates."""
        return bool(getattr(row, self.field) != self.silent)


_COLUMNS = (
    _Column("sites", "sites", "d", None),
    _Column("mean rank", "mean_rank", ".2f", None),
    _Column("tokens kept", "retention", ".0%", 1.0),
    _Column("tokens updated", "update_share", ".0%", 1.0),
    _Column("gate mean", "gate_mean", ".3f", None),
)


def _row(layer: str, members: Sequence[Mapping[str, Any]], retention: float) -> LayerRow:
    live = [site for site in members if site["form"] != "dropped"]
    gates = [site["gate_mean"] for site in live if site.get("gate_mean") is not None]
    return LayerRow(
        layer=layer,
        sites=len(members),
        forms=dict(Counter(site["form"] for site in members).most_common()),
        mean_rank=_mean([site["mean_rank"] for site in live]),
        retention=retention,
        update_share=_mean([site.get("update_share", 1.0) for site in live]),
        gate_mean=_mean(gates) if gates else None,
    )


def _retention(layer: str, facts: Mapping[str, Any]) -> float:
    """Share of the tokens that are left when a layer begins: that of the last cut above it."""
    number = layer.rpartition(".")[2]
    share = 1.0
    for cut in facts.get("masklora", {}).get("cuts", ()):
        if number.isdigit() and int(number) >= int(cut["layer"]):
            share = float(cut["share"])
    return share


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
