from __future__ import annotations

from typing import Any

import pytest
import torch

import gatefx
from gatefx.errors import GatefxError, InputError
from gatefx.models.configs.masklora import MaskLoRA
from gatefx.models.tiny import tiny_inputs
from gatefx.runtime.generation.chunks import packed


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("size", [1, 5, 21, 22, 100])
def test_parts_are_as_good_as_the_whole(pruned_decoder: Any, ragged_prompts: Any, side: str, size: int) -> None:
    model = pruned_decoder("llama")
    ids, mask = ragged_prompts(4, 22, side)
    options = {"max_new_tokens": 5, "stop": (), "budget": "100%"}
    whole = gatefx.generate(model, ids, mask, **options)
    found = gatefx.generate(model, ids, mask, chunk=size, **options)
    torch.testing.assert_close(found.logits, whole.logits, atol=1e-5, rtol=0)
    assert torch.equal(found.tokens, whole.tokens)
    assert found.prefill.tokens == whole.prefill.tokens


def test_parts_go_on_from_a_cache(pruned_decoder: Any) -> None:
    model, options = pruned_decoder("llama"), {"stop": (), "budget": 1.0}
    whole = gatefx.generate(model, [[5, 6, 7, 8, 9, 10]], max_new_tokens=4, **options).tokens
    cache = gatefx.generate(model, [[5, 6]], max_new_tokens=1, **options)._cache
    found = gatefx.generate(model, [[7, 8, 9, 10]], max_new_tokens=4, cache=cache, chunk=3, **options).tokens
    assert torch.equal(found, whole)


@pytest.mark.parametrize("side", ["left", "right"])
def test_dropped_tokens_of_every_part_leave_the_cache(pruned_decoder: Any, ragged_prompts: Any, side: str) -> None:
    model = pruned_decoder("llama")
    found = gatefx.generate(model, *ragged_prompts(4, 22, side), max_new_tokens=5, stop=(), budget=0.5, chunk=8)
    assert found.prefill.rows == (22, 4 + 4 + 3), "half of parts of 8, 8 and 6 tokens in the layer behind the cut"
    assert not [name for name in found.cache.entries if name.startswith("past_scores")]
    static = gatefx.generate(
        model, *ragged_prompts(4, 22, side), max_new_tokens=5, stop=(), budget=0.5, chunk=8, max_cache_len=30
    )
    assert torch.equal(static.tokens, found.tokens)
    assert static.decode.rows == (30, 11 + 8)


def test_the_last_tokens_that_stay_are_the_prompts_not_every_parts(adapted_decoder: Any) -> None:
    data = [tiny_inputs("llama", batch=4, tokens=24)]
    method = MaskLoRA(keep={1: 0.5}, sinks=2, recent=5, floor=0.0)
    model = gatefx.optimize(adapted_decoder("llama"), method, data=data, distill_steps=3, progress=False)
    cache = gatefx.generate(model, [[5] * 23, [7] * 11], max_new_tokens=1, budget=0.01, chunk=8).cache
    for row, length in enumerate((23, 11)):
        kept = set(cache.entries["past_positions.1"][row][cache.entries["past_mask.1"][row] > 0].tolist()) - {length}
        ends = {place for place in (7, 15) if place < length}  # of parts
        assert kept == {0, 1, *ends, *range(length - 5, length)}


@pytest.mark.parametrize("chunk", [0, True])
def test_parts_have_a_size(pruned_decoder: Any, chunk: Any) -> None:
    with pytest.raises(InputError, match="counts tokens"):
        gatefx.generate(pruned_decoder("llama"), [[5] * 9], chunk=chunk, budget=1.0)


def test_what_cannot_be_read_in_parts_is_refused(pruned_decoder: Any, adapted_decoder: Any) -> None:
    with pytest.raises(GatefxError, match="scores of the path"):
        gatefx.generate(pruned_decoder("llama", ((1, 0.5),), torch.float64, "path"), [[5] * 9], chunk=4, budget=0.5)
    with pytest.raises(GatefxError, match="linear bias"):
        gatefx.generate(pruned_decoder("bloom"), [[5] * 9], chunk=4, budget=0.5)
    data = [tiny_inputs("llama", batch=4, tokens=24)]
    routed = gatefx.optimize(adapted_decoder("llama"), "ccm", 2, data=data, distill_steps=3, progress=False)
    with pytest.raises(InputError, match="ccm at budget 2"):
        gatefx.generate(routed, [[5] * 9], chunk=4)


def test_real_tokens_come_in_front_in_their_order() -> None:
    ids, mask = packed(torch.tensor([[0, 0, 7, 8], [3, 0, 4, 0]]), torch.tensor([[0, 0, 1, 1], [1, 0, 1, 0]]))
    assert ids.tolist() == [[7, 8, 0, 0], [3, 4, 0, 0]]
    assert mask.tolist() == [[1, 1, 0, 0], [1, 1, 0, 0]]
