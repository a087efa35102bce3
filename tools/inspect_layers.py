"""What became of each transformer layer: sites, ranks, tokens kept, updates skipped, gate means."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.markup import escape
from rich.table import Table

from ..passes.find.layer_names import layer_of

_OUTSIDE = "outside the layers"
_ENCODER, _DECODER = "encoder", "decoder"


@dataclass(frozen=True)
class LayerRow:
    """One layer of a gated or a deployed model; means are over its sites that are not dropped.

    Attributes:
        sites: how many adapter sites; forms: how many took each form; rank: mean rank of their adapters.
        mean_rank: effective rank, merged sites count all of theirs; None where it was not measured.
        retention: share of the real tokens that enter the layer, on the data.
        update_share: share of tokens that take the update; sparsity is what is left.
        gate_mean: of gates on updates; threshold: max(0, τ + level); weight: ω. None where there are none.
    """

    layer: str
    sites: int
    forms: Mapping[str, int]
    rank: float
    mean_rank: float | None
    retention: float
    update_share: float
    gate_mean: float | None
    threshold: float | None
    weight: float | None

    @property
    def sparsity(self) -> float:
        """Share of tokens that skip the update."""
        return 1 - self.update_share


def layer_rows(sites: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> list[LayerRow]:
    """Rows in the order of the layers.

    Args:
        sites: as a manifest lists them; facts: of its report, by method.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for site in sites:
        groups.setdefault(layer_of(site["name"]) or _OUTSIDE, []).append(site)
    paired = any(_ENCODER in layer.split(".") for layer in groups)
    shares = {layer: 1.0 if paired and _DECODER in layer.split(".") else _retention(layer, facts) for layer in groups}
    return [_row(layer, members, shares[layer], facts) for layer, members in groups.items()]


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
    _Column("rank", "rank", "g", None),
    _Column("effective rank", "mean_rank", ".2f", None),
    _Column("tokens kept", "retention", ".0%", 1.0),
    _Column("updates skipped", "sparsity", ".0%", 0.0),
    _Column("gate mean", "gate_mean", ".3f", None),
    _Column("threshold", "threshold", ".4g", None),
    _Column("weight", "weight", ".4g", None),
)


def _row(layer: str, members: Sequence[Mapping[str, Any]], retention: float, facts: Mapping[str, Any]) -> LayerRow:
    live = [site for site in members if site["form"] != "dropped"]
    measured = any(site.get("mean_rank") is not None for site in members)
    return LayerRow(
        layer=layer,
        sites=len(members),
        forms=dict(Counter(site["form"] for site in members).most_common()),
        rank=_mean([site["rank"] for site in members]),
        mean_rank=_mean([site["mean_rank"] for site in live]) if measured else None,
        retention=retention,
        update_share=_mean([site.get("update_share", 1.0) for site in live]) if live else 1.0,
        gate_mean=_mean_of_some([site.get("gate_mean") for site in live]),
        threshold=_mean_of_some([_threshold(site["name"], facts) for site in live]),
        weight=_mean_of_some([facts.get("weightlora", {}).get("omegas", {}).get(site["name"]) for site in live]),
    )


def _threshold(name: str, facts: Mapping[str, Any]) -> float | None:
    """What r is compared with at a site; None where no threshold gates it."""
    found = facts.get("tspeft", {})
    tau = found.get("thresholds", {}).get(name)
    return None if tau is None else max(0.0, tau + found.get("level", 0.0))


def _retention(layer: str, facts: Mapping[str, Any]) -> float:
    """Share of the tokens that are left when a layer begins: that of the last cut above it."""
    number = layer.rpartition(".")[2]
    share = 1.0
    for cut in facts.get("masklora", {}).get("cuts", ()):
        if number.isdigit() and int(number) >= int(cut["layer"]):
            share = float(cut["share"])
    return share


def _mean_of_some(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _mean(known) if known else None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
