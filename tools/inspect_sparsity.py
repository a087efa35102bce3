"""`gatefx inspect --sparsity`: sites in the order in which they matter, the least sparse first (TS-PEFT, §4.3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.markup import escape
from rich.table import Table

from ..errors import InputError

_TOKEN_METHODS = ("tspeft", "gatera")


@dataclass(frozen=True)
class SparsityRow:
    """One site: the share of tokens that skip its update on the calibration data, and τ where it has one."""

    layer: str
    sparsity: float
    threshold: float | None
    form: str


def sparsity_rows(description: Mapping[str, Any]) -> list[SparsityRow]:
    """The sites of an exported model, or of measured gates, by rising sparsity; of equal ones the earlier.

    Raises:
        InputError: a folder whose sites were not measured.
    """
    gates = description.get("kind") == "gates"
    facts = description["facts"] if gates else description.get("report", {}).get("facts", {})
    measured = [name for name in _TOKEN_METHODS if "update_shares" in facts.get(name, {})]
    if not measured:
        raise InputError(
            "The folder does not say how many tokens skip each site.",
            given=f"{description['folder']}, methods {', '.join(description['methods'])}",
            expected="a model with tspeft or gatera, optimized with data= and exported; or saved gates, with --data",
            remedy="pass --data FILE to inspect saved gates"
            if gates
            else "call gatefx.optimize(gated, data=batches) and export what it returns",
        )
    shares, thresholds = facts[measured[0]]["update_shares"], facts[measured[0]].get("thresholds", {})
    forms = {site["name"]: site["form"] for site in description["adapters" if gates else "sites"]}
    rows = [SparsityRow(name, 1 - share, thresholds.get(name), forms.get(name, "")) for name, share in shares.items()]
    return sorted(rows, key=lambda row: row.sparsity)


def sparsity_json(rows: list[SparsityRow]) -> list[dict[str, Any]]:
    """The rows as plain data."""
    return [asdict(row) for row in rows]


def sparsity_table(rows: list[SparsityRow]) -> Table:
    """The rows for a console."""
    table = Table(title="sites, the least sparse first", title_justify="left", box=None, pad_edge=False)
    table.add_column("layer")
    table.add_column("sparsity", justify="right")
    table.add_column("threshold", justify="right")
    table.add_column("form")
    for row in rows:
        threshold = "" if row.threshold is None else f"{row.threshold:.4g}"
        table.add_row(escape(row.layer), f"{row.sparsity:.1%}", threshold, row.form)
    return table
