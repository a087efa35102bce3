from __future__ import annotations

from typing import Any

import torch

from gatefx.models.tiny import tiny, tiny_inputs
from gatefx.passes.graph.canonical import canonical_text
from gatefx.passes.graph.capture import capture
from gatefx.passes.harden.freeze import FreezeRegularization
from gatefx.passes.harden.open_choices import OpenTokenChoices


def test_without_its_choices_a_graph_is_the_one_before_the_gates(masked_tokens: Any) -> None:
    for family in ("bert", "modernbert"):
        model, batch = tiny(family), tiny_inputs(family, batch=3, tokens=9)
        before = FreezeRegularization()(capture(model, batch).graph_module).graph_module
        masked = masked_tokens(model, batch, {0: 0.7, 1: 0.5})
        opened = OpenTokenChoices()(masked, verify=True).graph_module
        assert canonical_text(opened) == canonical_text(before)
        wanted, found = (graph.eval()(*batch.values())["logits"] for graph in (before, opened))
        assert torch.equal(wanted, found)


def test_a_graph_without_choices_stays_the_object_that_it_is() -> None:
    graph = capture(tiny("bert"), tiny_inputs("bert", batch=2, tokens=5)).graph_module
    assert OpenTokenChoices()(graph, verify=True).graph_module is graph
