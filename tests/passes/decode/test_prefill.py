from __future__ import annotations

import pytest
import torch

from gatefx.models.tiny import tiny_inputs
from gatefx.passes.chain import Chain
from gatefx.passes.decode.prefill import ExposeCache
from gatefx.passes.graph.capture import capture
from gatefx.passes.graph.capture_decoder import token_positions
from gatefx.passes.graph.signature import signature_of
from gatefx.passes.harden.freeze import FreezeRegularization


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_last_real_tokens_logits_and_the_models_own_cache(pairs, ragged_prompts, side: str) -> None:
    for family in ("llama", "gpt2", "opt", "mistral"):
        model, pair = pairs(family)
        ids, mask = ragged_prompts(3, 11, side)
        answers = pair.start(ids, mask)
        with torch.no_grad():
            given = {"input_ids": ids, "attention_mask": mask, "position_ids": token_positions(mask)}
            wanted = model(**given, use_cache=True)
        last = mask.argmax(1) + mask.sum(1) - 1
        rows = torch.arange(3)
        torch.testing.assert_close(answers["logits"][:, 0], wanted.logits[rows, last], atol=1e-5, rtol=0)
        for layer, (key, value, *_) in enumerate(wanted.past_key_values):
            for name, states in (("key", key), ("value", value)):
                real = mask[:, None, :, None] > 0
                ours = answers[f"present.{layer}.{name}"]
                torch.testing.assert_close(ours * real, states * real, atol=1e-5, rtol=0)


def test_a_prompt_of_one_token_beside_a_longer_one(pairs) -> None:
    model, pair = pairs("llama")
    ids, mask = torch.tensor([[0, 0, 9], [5, 6, 7]]), torch.tensor([[0, 0, 1], [1, 1, 1]])
    with torch.no_grad():
        wanted = model(torch.tensor([[9]])).logits[0, -1]
    torch.testing.assert_close(pair.start(ids, mask)["logits"][0, 0], wanted, atol=1e-5, rtol=0)


def test_positions_become_an_input_and_only_one_tokens_logits_are_computed(pairs) -> None:
    graph = pairs("gemma")[1].prefill
    assert signature_of(graph).input_names == ("input_ids", "attention_mask", "position_ids")
    logits = graph.graph.output_node().args[0]["logits"]
    assert logits.meta["val"].shape[1] == 1


def test_positions_that_are_an_input_already_stay_it(pairs) -> None:
    example = tiny_inputs("llama", batch=2, tokens=6)
    example["position_ids"] = token_positions(example["attention_mask"])
    graph = capture(pairs("llama")[0], example).graph_module
    prefill = Chain(graph, True).then(FreezeRegularization(), ExposeCache()).graph
    assert signature_of(prefill).input_names == tuple(example)
