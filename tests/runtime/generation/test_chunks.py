from __future__ import annotations

from typing import Any

import pytest
import torch

import gatefx
from gatefx.errors import InputError
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


@pytest.mark.parametrize(("chunk", "budget", "words"), [(0, 1.0, "counts tokens"), (True, 1.0, "counts tokens"),
                                                        (4, 0.5, "masklora at budget 0.5")])  # fmt: skip
def test_what_cannot_be_read_in_parts_is_refused(pruned_decoder: Any, chunk: Any, budget: float, words: str) -> None:
    with pytest.raises(InputError, match=words):
        gatefx.generate(pruned_decoder("llama"), [[5] * 9], chunk=chunk, budget=budget)


def test_real_tokens_come_in_front_in_their_order() -> None:
    ids, mask = packed(torch.tensor([[0, 0, 7, 8], [3, 0, 4, 0]]), torch.tensor([[0, 0, 1, 1], [1, 0, 1, 0]]))
    assert ids.tolist() == [[7, 8, 0, 0], [3, 4, 0, 0]]
    assert mask.tolist() == [[1, 1, 0, 0], [1, 1, 0, 0]]
