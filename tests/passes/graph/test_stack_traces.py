"""Traces carry modules and no lines of Python, and torch's own option stays the caller's."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.fx import config

from gatefx.passes.graph.capture import capture
from gatefx.passes.graph.stack_traces import without_stack_traces
from gatefx.passes.lower.dynamic_export import export_dynamic


def test_captured_and_exported_nodes_say_their_module_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    example = {"input": torch.randn(3, 5, 4)}
    captured = capture(model, example).graph_module.graph
    exported = export_dynamic(model.eval(), example).graph

    for graph in (captured, exported):
        calls = [node for node in graph.nodes if node.op == "call_function"]
        assert len(calls) == 2
        assert all(node.meta["nn_module_stack"] for node in calls)
        assert not any(node.stack_trace for node in graph.nodes)
    assert config.do_not_emit_stack_traces is False


@pytest.mark.parametrize("before", [False, True])
def test_the_option_comes_back_after_an_error_too(before: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        with without_stack_traces():
            assert config.do_not_emit_stack_traces
            raise ValueError("while tracing")

    monkeypatch.setattr(config, "do_not_emit_stack_traces", before)
    with pytest.raises(ValueError, match="while tracing"):
        fail()
    assert config.do_not_emit_stack_traces is before
