"""SettleTokenGates: what InsertTokenGates did is undone to the letter."""

from __future__ import annotations

from typing import Any

import pytest

from gatefx.models.configs.masklora import MaskLoRA
from gatefx.passes.gate.lora import AttachLora
from gatefx.passes.gate.token_cuts import PlaceTokenGates
from gatefx.passes.gate.token_scores import FeedTokenGates
from gatefx.passes.graph.canonical import canonical_text
from gatefx.passes.harden.settle_tokens import SettleTokenGates


@pytest.mark.parametrize("family", ["bert", "deberta-v2", "t5", "vit"])
@pytest.mark.parametrize("options", [{"keep": ((0, 0.8), (1, 0.5))}, {"scores": "path"}])
def test_the_graph_is_the_one_before_insertion(captured_family: Any, family: str, options: dict[str, Any]) -> None:
    config = MaskLoRA(rank=4, **options)
    plain = AttachLora(4, 8.0, 0.0, "all-linear")(captured_family(family)[1].graph_module).graph_module
    gated = FeedTokenGates(config)(PlaceTokenGates(config, 0.5)(plain).graph_module).graph_module
    assert canonical_text(gated) != canonical_text(plain)

    settled = SettleTokenGates()(gated, verify=True)

    assert canonical_text(settled.graph_module) == canonical_text(plain)
    assert len(settled.reports[0].fired) == len(options.get("keep", (1,)))
    assert SettleTokenGates()(settled.graph_module, verify=True).graph_module is settled.graph_module
