"""Shared traces: the weights are each model's own, and what is built otherwise is traced by itself."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from gatefx.models.tiny import tiny, tiny_inputs
from gatefx.passes.graph import capture as capture_module
from gatefx.passes.graph.capture import capture

from .traces import SharedTraces

INPUTS = tiny_inputs("bert", batch=3, tokens=9)


@pytest.fixture
def trace(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """The trace itself, which counts its calls; nothing is known yet."""
    counted = Mock(wraps=capture_module._export.trace)
    monkeypatch.setattr(capture_module, "_export", SharedTraces(counted))
    return counted


def other_numbers(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(7)
    for tensor in model.parameters():
        tensor.data.add_(0.1 * torch.randn(tensor.shape, generator=generator))
    return model


def with_relu(model: Any) -> nn.Module:
    model.bert.encoder.layer[0].intermediate.intermediate_act_fn = nn.ReLU()
    return model


def test_each_model_answers_with_its_own_numbers(trace: Mock) -> None:
    models = [tiny("bert"), other_numbers(tiny("bert"))]
    graphs = [capture(model, INPUTS) for model in models]

    assert trace.call_count == 1
    assert graphs[0].notes == graphs[1].notes == ()
    for model, graph in zip(models, graphs, strict=True):
        wanted = model.eval()(**INPUTS)["logits"]
        answered = graph.graph_module.eval()(*INPUTS.values())["logits"]
        torch.testing.assert_close(answered, wanted, rtol=0, atol=1e-6)
    with torch.no_grad():
        next(graphs[1].graph_module.parameters()).zero_()
    assert next(graphs[0].graph_module.parameters()).abs().sum() > 0


@pytest.mark.parametrize(
    "other",
    [
        lambda: tiny("electra"),
        lambda: tiny("bert", num_labels=5),
        lambda: tiny("bert").double(),
        lambda: tiny("bert").requires_grad_(False),
        lambda: with_relu(tiny("bert")),
        lambda: get_peft_model(tiny("bert"), LoraConfig(r=4, target_modules=["query"])),
    ],
)
def test_models_built_otherwise_are_traced_by_themselves(trace: Mock, other: Any) -> None:
    capture(tiny("bert"), INPUTS)
    capture(other(), INPUTS)
    assert trace.call_count == 2


def test_other_scales_too(trace: Mock) -> None:
    for alpha in (8, 8, 16):
        model = get_peft_model(tiny("bert"), LoraConfig(r=4, target_modules=["query"], lora_alpha=alpha))
        capture(model, INPUTS)
    assert trace.call_count == 2


@pytest.mark.parametrize(
    ("family", "batch", "tokens", "traces"),
    [
        ("bert", 5, 14, 1),
        ("bert", 3, 7, 2),  # 9 is more than the 8 channels of a head
        ("bert", 9, 9, 2),  # equal sizes are one symbol
        ("mistral", 3, 14, 1),
        ("mistral", 3, 20, 2),  # longer than its window
    ],
)
def test_sizes_that_compare_alike_share_a_trace(trace: Mock, family: str, batch: int, tokens: int, traces: int) -> None:
    model = tiny(family)
    captured = [capture(model, tiny_inputs(family, *sizes)) for sizes in ((3, 9), (batch, tokens))]

    assert trace.call_count == traces
    for inputs in (tiny_inputs(family, 2, 11, seed=1), tiny_inputs(family, 4, 18, seed=2)):
        answers = [graph.graph_module.eval()(*inputs.values())["logits"] for graph in captured]
        wanted = model.eval()(**inputs)["logits"]
        for answer in answers:
            torch.testing.assert_close(answer, wanted, rtol=0, atol=1e-5)


def test_code_of_a_test_is_traced_each_time(trace: Mock) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x)

    for _ in range(2):
        capture(Own(), {"x": torch.randn(3, 4)})
    assert trace.call_count == 2
