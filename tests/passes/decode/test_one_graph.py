"""One graph over a cache that may be empty: step by step what prefill and decode generate, padding included."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gatefx
from gatefx.errors import InputError
from gatefx.methods import CCM, TSPEFT, MaskLoRA
from gatefx.models.tiny import tiny_decoder, tiny_inputs
from gatefx.passes.decode.one_graph import OneGraph, one_graph
from gatefx.passes.deployed import DeployedModel


def deployed(method: Any, budget: float) -> DeployedModel:
    data = [tiny_inputs("llama", 4, 12, seed=seed) for seed in range(2)]
    gated = gatefx.prepare(tiny_decoder("llama"), method, budget, example_inputs=data[0]).eval()
    for name, parameter in gated.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.2)
    return gatefx.optimize(gated, data=data, progress=False)


def generated(graph: OneGraph, ids: Tensor, mask: Tensor, steps: int) -> Tensor:
    """Greedy tokens (B, steps), from an empty cache."""
    rows = {name: value[:1, :, :0].expand(len(ids), -1, -1, -1) for name, value in list(graph.example.items())[3:]}
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    tokens = []
    for _ in range(steps):
        answers = graph.graph_module(ids, mask, positions, *rows.values())
        ids = answers["logits"][:, -1:].argmax(-1).reshape(-1, 1)
        tokens.append(ids)
        rows = {name: answers[name.replace("past_key_values", "present")] for name in rows}
        mask = torch.cat([mask, torch.ones_like(ids)], 1)
        positions = mask.sum(1, keepdim=True) - 1
    return torch.cat(tokens, 1)


@torch.no_grad()
def test_tokens_are_those_of_prefill_and_decode() -> None:
    fast = deployed(TSPEFT(rank=4), 0.5)
    graph = one_graph(fast.programs)  # type: ignore[arg-type]  # a decoder has them
    ids = torch.tensor([[5, 6, 7, 8, 9], [1, 1, 3, 4, 11], [1, 20, 21, 22, 23]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [0, 1, 1, 1, 1]])
    expected = torch.as_tensor(gatefx.generate(fast, ids, mask, max_new_tokens=6, stop=()).tokens)
    torch.testing.assert_close(generated(graph, ids, mask, 6), expected)
    assert len(expected.unique()) > 1


@pytest.mark.parametrize(
    ("method", "budget", "words"),
    [(CCM(rank=4), 2, r"differ by ranks\."), (MaskLoRA(rank=4, keep={0: 0.5}), 0.5, "fewer tokens")],
)
def test_caches_that_optimum_cannot_keep_are_refused(method: Any, budget: float, words: str) -> None:
    fast = deployed(method, budget)
    with pytest.raises(InputError, match=rf"{words}[\s\S]*use_cache=False"):
        one_graph(fast.programs)  # type: ignore[arg-type]  # a decoder has them
