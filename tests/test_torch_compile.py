"""torch.compile on deployed models: one graph without breaks for every length, and for every budget."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo import config as dynamo_config
from torch._dynamo.utils import counters

import gatefx
from gatefx.config import AdapterConfig
from gatefx.methods import CCM, TSPEFT, GateRA, MaskLoRA
from gatefx.models.tiny import tiny, tiny_inputs

from .sampling import rest_slow

LENGTHS = (7, 10, 13)
CASES = {
    "ccm": (CCM(rank=8), 4, 2),
    "gatera": (GateRA(rank=4), 0.5, 0.3),
    "tspeft": (TSPEFT(rank=4), 0.5, 0.3),
    "masklora": (MaskLoRA(rank=4), 0.5, 0.3),
}


def batches() -> list[dict[str, Tensor]]:
    return [tiny_inputs("bert", 4, tokens, seed) for seed, tokens in enumerate(LENGTHS)]


def deployed(config: AdapterConfig, budget: float) -> Any:
    gated = gatefx.prepare(tiny("bert"), config, budget, example_inputs=batches()[0])
    for name, buffer in gated.named_buffers():
        if name.endswith("updates"):
            buffer.fill_(1)  # gates count as trained, so that none are fitted
    with torch.no_grad():
        for parameter in gated.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)  # updates that show, and gates that differ from token to token
    return gatefx.optimize(gated, budget=budget, data=batches(), progress=False)


@pytest.mark.parametrize("name", rest_slow(CASES))
@torch.no_grad()
def test_lengths_and_budgets_share_one_graph(name: str) -> None:
    config, budget, smaller = CASES[name]
    model = deployed(config, budget)
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=True)
    compiled(**batches()[0])

    with dynamo_config.patch(error_on_recompile=True):
        for batch in batches():
            torch.testing.assert_close(compiled(**batch)["logits"], model(**batch)["logits"])
        before = model(**batches()[0])["logits"]
        model.budget = smaller
        assert not torch.equal(model(**batches()[0])["logits"], before)
        for batch in batches():
            torch.testing.assert_close(compiled(**batch)["logits"], model(**batch)["logits"])

    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


@torch.no_grad()
def test_another_adapter_of_the_same_sizes_needs_no_new_graph() -> None:
    config, budget, _ = CASES["ccm"]
    model = deployed(config, budget)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=True)
    before = compiled(**batches()[0])["logits"]

    adapters = [tensor for name, tensor in model.named_parameters() if "lora_" in name]
    assert adapters
    for tensor in adapters:
        tensor.normal_(std=0.3)
    with dynamo_config.patch(error_on_recompile=True):
        after = compiled(**batches()[0])["logits"]
    assert not torch.equal(after, before)
    torch.testing.assert_close(after, model(**batches()[0])["logits"])
