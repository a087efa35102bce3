from __future__ import annotations

from typing import Any

import pytest
import torch

import gatefx
from gatefx.errors import InputError
from gatefx.passes.decode.engine import engine_of
from gatefx.runtime.generation.loop import start_generation
from gatefx.runtime.generation.sampling import Sampling

_CUTS = ((0, 0.7), (1, 0.5))


def evicting(model: Any, prompt: Any, every: int, steps: int, *, masked: bool = False, chunk: int | None = None) -> Any:
    return start_generation(
        engine_of(model, masked=masked), *prompt, max_new_tokens=steps, sampling=Sampling(), stop=(), budget=0.5,
        cache=None, chunk=chunk, evict_every=every,
    )  # fmt: skip


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("every", "chunk"), [(1, None), (3, None), (4, 6)])
def test_compacted_is_masked(pruned_decoder: Any, ragged_prompts: Any, side: str, every: int, chunk: Any) -> None:
    model = pruned_decoder("mistral", _CUTS, torch.float64)
    prompt = ragged_prompts(3, 20, side)
    short, dense = (evicting(model, prompt, every, 10, masked=masked, chunk=chunk) for masked in (False, True))
    assert torch.equal(short.tokens, dense.tokens)
    torch.testing.assert_close(short.logits, dense.logits, atol=1e-6, rtol=0)
    assert max(short.cache.rows) <= max(dense.cache.rows)


def test_at_every_interval_it_stands_where_parts_would(pruned_decoder: Any) -> None:
    """A prompt of 6 tokens and an answer of 4 + 4, read as parts of 6, 4 and 4."""
    model = pruned_decoder("llama", ((1, 0.5),), torch.float64)
    engine, ids = engine_of(model), torch.tensor([[5, 6, 7, 8, 9, 10]])
    generation = evicting(model, (ids, torch.ones_like(ids)), 4, 9)
    tokens = generation.tokens
    whole, cache = torch.cat([ids, tokens[:, :8]], 1), None
    for begin, size in ((0, 6), (6, 4), (10, 4)):
        part = whole[:, begin : begin + size]
        end = torch.tensor([begin + size - 1])
        logits, cache = engine.read_part(part, torch.ones_like(part), 0.5, cache, end)
    assert cache is not None
    assert int(logits.argmax(-1)) == int(tokens[0, 8])
    kept = generation.cache.entries["past_positions.1"][0]
    assert kept.tolist() == [*cache.entries["past_positions.1"][0].tolist(), 14], "and the token that came behind it"
    assert len(kept) < 15


def test_rows_that_stopped_are_left_alone(pruned_decoder: Any, ragged_prompts: Any) -> None:
    model, (ids, mask) = pruned_decoder("llama"), ragged_prompts(4, 20)
    options = {"max_new_tokens": 9, "budget": 0.5, "evict_every": 3}
    free = gatefx.generate(model, ids, mask, stop=(), **options).tokens
    stop = int(free[0, 1])
    found = gatefx.generate(model, ids, mask, stop=stop, **options).tokens
    for row, own in zip(found, free, strict=True):
        end = own.tolist().index(stop) + 1 if stop in own else 9
        assert torch.equal(row[:end], own[:end])


def test_the_cache_grows_slower(pruned_decoder: Any) -> None:
    model = pruned_decoder("llama")
    options = {"max_new_tokens": 40, "stop": (), "budget": 0.5}
    caches = []
    for interval in (8, None):
        generation = gatefx.generate(model, [[5] * 20], evict_every=interval, **options)
        assert generation.tokens.shape == (1, 40)
        caches.append(generation.cache)
    every, kept = caches
    assert every.rows[1] == 10 + 5 * 4
    assert kept.rows[1] == 10 + 40
    assert every.bytes < kept.bytes


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"evict_every": 0}, "counts tokens"),
        ({"evict_every": True}, "counts tokens"),
        ({"evict_every": 4, "budget": 1.0}, "Nothing would be dropped"),
        ({"evict_every": 4, "max_cache_len": 40}, "caches that grow"),
    ],
)
def test_what_means_nothing_is_refused(pruned_decoder: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        gatefx.generate(pruned_decoder("llama"), [[5, 6, 7]], **{"budget": 0.5, "max_new_tokens": 5, **options})


def test_a_prompt_read_before_is_refused(pruned_decoder: Any) -> None:
    model = pruned_decoder("llama")
    cache = gatefx.generate(model, [[5, 6, 7]], budget=0.5, max_new_tokens=1).cache
    with pytest.raises(InputError, match="caches that grow"):
        gatefx.generate(model, [[5]], budget=0.5, cache=cache, evict_every=4)
