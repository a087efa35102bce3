from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import TextStreamer

import gatefx
from gatefx.errors import InputError
from gatefx.models.tiny import tiny, tiny_inputs

_OPTIONS = {"max_new_tokens": 8, "eos_token_id": None, "pad_token_id": 0, "do_sample": False}


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_with_every_token_kept_it_is_the_untouched_models_own_text(
    family: str, beams: int, pruned_decoder: Any, adapted_decoder: Any, ragged_prompts: Any
) -> None:
    model, untouched = pruned_decoder(family), adapted_decoder(family)
    model.budget = 1.0
    ids, mask = ragged_prompts(4, 22, "left")
    found, wanted = (
        made.generate(input_ids=ids, attention_mask=mask, num_beams=beams, **_OPTIONS)
        for made in (model.for_transformers(), untouched)
    )
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("share", [0.7, 0.3])
def test_with_tokens_dropped_it_is_gatefxs_own_text(share: float, pruned_decoder: Any, ragged_prompts: Any) -> None:
    model = pruned_decoder("llama")
    model.budget = share
    ids, mask = ragged_prompts(4, 22, "left")
    found = model.for_transformers().generate(input_ids=ids, attention_mask=mask, **_OPTIONS)
    assert torch.equal(found[:, 22:], gatefx.generate(model, ids, mask, max_new_tokens=8, stop=()).tokens)


def test_samples_and_streamers_are_transformers_own(pruned_decoder: Any) -> None:
    class Kept(TextStreamer):
        def __init__(self) -> None:
            self.tokens: list[int] = []

        def put(self, value: torch.Tensor) -> None:
            self.tokens += value.flatten().tolist()

        def end(self) -> None:
            self.tokens.append(-1)

    model, streamer = pruned_decoder("llama").for_transformers(), Kept()
    options = {**_OPTIONS, "do_sample": True, "temperature": 0.9, "top_k": 20, "streamer": streamer}
    found = model.generate(input_ids=torch.tensor([[5, 6, 7]]), **options)
    assert streamer.tokens == [*found[0].tolist(), -1]


def test_it_shares_the_parameters_and_needs_a_decoder(pruned_decoder: Any) -> None:
    model = pruned_decoder("llama")
    assert {id(p) for p in model.for_transformers().parameters()} == {id(p) for p in model.parameters()}
    encoder = gatefx.prepare(tiny("bert"), "ccm", example_inputs=tiny_inputs("bert", batch=2, tokens=6))
    with pytest.raises(InputError, match="cannot generate"):
        gatefx.optimize(encoder, budget="100%", fold=True).for_transformers()
