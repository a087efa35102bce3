"""`gatefx inspect --sparsity`: the least sparse site first, and a folder that cannot say."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from gatefx.errors import InputError
from gatefx.tools.inspect_sparsity import sparsity_json, sparsity_rows, sparsity_table


def description(**facts: Any) -> dict[str, Any]:
    sites = [{"name": name, "form": "skipping"} for name in ("layer.0.query", "layer.0.value", "layer.1.query")]
    return {"folder": "out", "methods": {"tspeft": {}}, "sites": sites, "report": {"facts": facts}}


def test_sites_are_ranked_by_rising_sparsity() -> None:
    shares = {"layer.0.query": 0.25, "layer.0.value": 0.9, "layer.1.query": 0.5}
    rows = sparsity_rows(description(tspeft={"update_shares": shares, "thresholds": {"layer.0.value": 0.125}}))

    assert [row.layer for row in rows] == ["layer.0.value", "layer.1.query", "layer.0.query"]
    assert [row.sparsity for row in rows] == pytest.approx([0.1, 0.5, 0.75])
    assert sparsity_json(rows)[0] == {
        "layer": "layer.0.value",
        "sparsity": pytest.approx(0.1),
        "threshold": 0.125,
        "form": "skipping",
    }
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(sparsity_table(rows))
    printed = console.export_text()
    assert "75.0%" in printed
    assert "0.125" in printed


def test_shares_of_gatera_rank_too() -> None:
    assert sparsity_rows(description(gatera={"update_shares": {"layer.0.query": 0.25}}))[0].sparsity == 0.75


def test_a_folder_without_shares_is_refused() -> None:
    with pytest.raises(InputError, match="optimized with data="):
        sparsity_rows(description(ccm={}))
