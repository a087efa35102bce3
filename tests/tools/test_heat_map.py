"""The token heat map: rows say what the gates decide, and the page shows every token of the sentence."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import gatefx
from gatefx.errors import SiteError
from gatefx.models.configs.catalogue import METHODS
from gatefx.models.tiny import tiny, tiny_inputs
from gatefx.passes.deployed import DeployedModel
from gatefx.tools.heat_map import heat_rows
from gatefx.tools.heat_page import HeatRow, write_heat_map

Command = Callable[..., tuple[int, str, str]]
DATA = [tiny_inputs("bert", batch=6, tokens=10, seed=seed) for seed in range(2)]
ONE = tiny_inputs("bert", batch=1, tokens=10, seed=5)


def deployed(name: str, budget: Any) -> DeployedModel:
    config: Any = dataclasses.replace(METHODS[name], rank=4, target_modules=("query",))
    torch.manual_seed(0)
    gated = gatefx.prepare(tiny("bert"), config, budget=budget, example_inputs=DATA[0])
    for parameter in gated.parameters():
        if parameter.requires_grad and name != "ccm":
            torch.nn.init.normal_(parameter, std=0.2)
    return gatefx.optimize(gated, data=DATA, distill_steps=2, progress=False)


def test_a_cut_s_row_keeps_the_budget_s_share_and_the_first_token() -> None:
    (row,) = heat_rows(deployed("masklora", 0.5), ONE)

    assert row.label == "kept after layer 1"
    assert set(row.values) == {0.0, 1.0}
    assert sum(row.values) == 5
    assert row.values[0] == 1


def test_layers_have_rows_of_update_shares() -> None:
    rows = heat_rows(deployed("gatera", 0.5), ONE)

    assert [row.label for row in rows] == ["gatera: 0", "gatera: 1"]
    assert all(len(row.values) == 10 and set(row.values) <= {0.0, 1.0} for row in rows)
    assert 0 < sum(map(sum, (row.values for row in rows))) < 20


def test_a_model_that_decides_by_example_has_no_map() -> None:
    with pytest.raises(SiteError, match="token by token"):
        heat_rows(deployed("ccm", 2), ONE)


def test_the_page_shows_tokens_and_escapes_them(tmp_path: Path) -> None:
    rows = [HeatRow("kept after layer 1", "kept", (1.0, 0.0)), HeatRow("gatera: 0", "updated", (0.25, 0.75))]
    write_heat_map(rows, ["[CLS]", "<b>"], tmp_path / "map.html", title="T")
    page = (tmp_path / "map.html").read_text(encoding="utf-8")

    assert page.count("[CLS]") == page.count("&lt;b&gt;") == 2
    assert "<b>" not in page
    assert page.count('class="dropped"') == 1
    assert "50 %" in page


def test_the_command_refuses_half_a_request_and_gates_by_example(
    gatefx: Command, gates_folder: Path, adapter_folder: Path, tmp_path: Path
) -> None:
    assert gatefx("inspect", gates_folder, "--html", tmp_path / "map.html")[0] == 2
    out = tmp_path / "map.html"
    for folder, words in ((gates_folder, "token by token"), (adapter_folder, "without gates")):
        code, _, err = gatefx("inspect", folder, "--text", "a good film", "--html", out)
        assert code != 0
        assert words in err
    assert not out.exists()
