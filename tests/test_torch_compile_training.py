"""torch.compile on models in training: one graph without breaks for every length, with eager's loss and gradients."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo import config as dynamo_config
from torch._dynamo.utils import counters

import gatefx
from gatefx.config import AdapterConfig
from gatefx.methods import CCM, TSPEFT, GateRA, MaskLoRA, WeightLoRA
from gatefx.models.regularization import REGULARIZATION_MODULES
from gatefx.models.tiny import tiny, tiny_inputs
from gatefx.passes.gated import GatedModel

from .sampling import rest_slow

# Dynamo makes an object of every autograd function that it traces, which torch itself warns of.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
LENGTHS = (7, 10, 13)
CASES: dict[str, tuple[AdapterConfig, float]] = {
    "ccm": (CCM(rank=8), 4),
    "gatera": (GateRA(rank=4), 0.5),
    "masklora": (MaskLoRA(rank=4), 0.5),
    "tspeft": (TSPEFT(rank=4), 0.5),
    "weightlora": (WeightLoRA(rank=4), 6),
}


def batches() -> list[dict[str, Tensor]]:
    return [
        tiny_inputs("bert", 4, tokens, seed) | {"labels": torch.tensor([0, 1, 1, 0])}
        for seed, tokens in enumerate(LENGTHS)
    ]


def gated_model(name: str) -> GatedModel:
    config, budget = CASES[name]
    example = {key: value for key, value in batches()[0].items() if key != "labels"}
    gated = gatefx.prepare(tiny("bert"), config, budget, example_inputs=example)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in gated.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    for module in gated.modules():
        if isinstance(module, REGULARIZATION_MODULES):
            module.p = 0.0
    return gated.train()


def loss_of(model: Any, batch: dict[str, Tensor], seed: int) -> Tensor:
    """The loss, its noise drawn from `seed`."""
    torch.manual_seed(seed)
    loss: Tensor = model(**batch).loss
    return loss


@pytest.mark.parametrize("name", rest_slow(CASES))
def test_training_is_one_graph_and_equals_eager(name: str) -> None:
    eager = gated_model(name)
    model = copy.deepcopy(eager)
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=True)
    optimizers = [torch.optim.SGD([p for p in one.parameters() if p.requires_grad], lr=0.01) for one in (eager, model)]
    schedules = [one.schedule(60, optimizer) for one, optimizer in zip((eager, model), optimizers, strict=True)]
    for step in range(4):
        batch = batches()[step % 3]
        with dynamo_config.patch(error_on_recompile=step > 1):
            losses = [loss_of(call, batch, step) for call in (eager, compiled)]
        torch.testing.assert_close(losses[1], losses[0])
        for loss, optimizer, schedule in zip(losses, optimizers, schedules, strict=True):
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    for (key, expected), (_, found) in zip(eager.named_parameters(), model.named_parameters(), strict=True):
        torch.testing.assert_close(found, expected, msg=lambda text, key=key: f"{key}: {text}")
    for (key, expected), (_, found) in zip(eager.named_buffers(), model.named_buffers(), strict=True):
        torch.testing.assert_close(found, expected, msg=lambda text, key=key: f"{key}: {text}")
    assert not counters["graph_break"]
