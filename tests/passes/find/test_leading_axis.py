"""Layers that read every token in one row, as OPT's do: one gate per example has no place there."""

from __future__ import annotations

from typing import Any

from gatefx.passes.find.adapters import find_sites
from gatefx.passes.gate.lora import AttachLora


def test_layers_over_flattened_tokens_are_declined_by_name(captured_family: Any) -> None:
    attached = AttachLora(4, 8.0, 0.0, "all-linear")(captured_family("opt")[1].graph_module, verify=True)

    flat = {row.where for row in attached.reports[0].declined if "not the batch" in row.reason}
    assert flat == {f"model.decoder.layers.{layer}.fc{half}" for layer in (0, 1) for half in (1, 2)}
    sites, misses = find_sites(attached.graph_module)
    assert len(sites) == 8
    assert not misses
