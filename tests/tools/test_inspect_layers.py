"""The table of layers: means over the right sites, and only columns that say something."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from gatefx.tools.inspect_layers import layer_rows, layer_table


def site(name: str, form: str = "gathered", **figures: Any) -> dict[str, Any]:
    return {"name": name, "form": form, "rank": 8, "mean_rank": 4.0, "update_share": 1.0, "gate_mean": None, **figures}


def printed(rows: Any) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(layer_table(rows))
    return capture.get()


def test_figures_are_means_over_a_layer_s_live_sites() -> None:
    sites = [
        site("encoder.layer.0.query", mean_rank=2.0, update_share=0.2, gate_mean=0.4),
        site("encoder.layer.0.value", mean_rank=4.0, update_share=0.6, gate_mean=0.8),
        site("encoder.layer.0.dense", "dropped", mean_rank=8.0),
        site("encoder.layer.1.query", "dropped"),
        site("classifier", "merged", mean_rank=8.0),
    ]

    first, second, outside = layer_rows(sites, {})

    assert (first.layer, first.sites, first.mean_rank) == ("encoder.layer.0", 3, 3.0)
    assert (round(first.update_share, 6), round(first.gate_mean or 0, 6)) == (0.4, 0.6)
    assert first.forms == {"gathered": 2, "dropped": 1}
    assert (second.mean_rank, second.gate_mean) == (0.0, None)
    assert (outside.layer, outside.forms) == ("outside the layers", {"merged": 1})


def test_retention_is_that_of_the_last_cut_above_the_layer() -> None:
    sites = [site(f"encoder.layer.{index}.query") for index in range(4)]
    facts = {"masklora": {"cuts": [{"layer": 1, "share": 0.7}, {"layer": 3, "share": 0.5}]}}

    assert [row.retention for row in layer_rows(sites, facts)] == [1.0, 0.7, 0.7, 0.5]


def test_columns_that_say_nothing_are_left_out() -> None:
    plain = printed(layer_rows([site("encoder.layer.0.query")], {}))
    assert "effective rank" in plain
    assert not [
        title for title in ("tokens kept", "updates skipped", "gate mean", "threshold", "weight") if title in plain
    ]

    gated = printed(layer_rows([site("encoder.layer.0.query", update_share=0.25, gate_mean=0.125)], {}))
    assert "75%" in gated
    assert "0.125" in gated


def test_thresholds_and_weights_come_from_the_facts() -> None:
    sites = [site("encoder.layer.0.query"), site("encoder.layer.0.value")]
    facts = {
        "tspeft": {"level": -0.3, "thresholds": {"encoder.layer.0.query": 0.5, "encoder.layer.0.value": 0.2}},
        "weightlora": {"omegas": {"encoder.layer.0.query": 0.5}},
    }
    (row,) = layer_rows(sites, facts)

    assert row.threshold == pytest.approx(0.1)  # max(0, τ + level): 0.2 and 0
    assert row.weight == 0.5


def test_a_decoder_beside_an_encoder_keeps_every_token() -> None:
    facts = {"masklora": {"cuts": [{"layer": 1, "share": 0.5}]}}
    both = layer_rows([site("encoder.block.1.q"), site("decoder.block.1.q")], facts)
    assert [row.retention for row in both] == [0.5, 1.0]
    assert layer_rows([site("model.decoder.layers.1.q")], facts)[0].retention == 0.5
