from __future__ import annotations

from typing import Any

import pytest
import torch

import gatefx
from gatefx.errors import InputError
from gatefx.models.tiny import tiny, tiny_inputs
from gatefx.runtime.generation.static_rows import StaticRows, check_cache_length, kept_rows, with_room
from gatefx.runtime.generation.torch_engine import TorchEngine

_CUTS = ((0, 0.7), (1, 0.5))


@pytest.fixture
def model(pruned_decoder: Any) -> Any:
    made = pruned_decoder("mistral", _CUTS)
    made.budget = 0.5
    return made


def test_a_token_that_had_no_row_is_refused_each_time_it_would_be_read(model: Any) -> None:
    """The last token is only read to go on from: 4 and 3 rows generate four tokens, and cache three of them."""
    generation = gatefx.generate(model, [[5, 6, 7, 8]], max_new_tokens=4, stop=(), max_cache_len=7)
    assert generation.tokens.shape == (1, 4)
    for _ in range(2):
        with pytest.raises(InputError, match="rows"):
            _ = generation.cache


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("budget", [1.0, 0.5, 0.3])
def test_tokens_are_those_of_a_cache_that_grows(model: Any, ragged_prompts: Any, budget: float, side: str) -> None:
    options = {"max_new_tokens": 8, "stop": (), "budget": budget}
    grown = gatefx.generate(model, *ragged_prompts(4, 22, side), **options)
    static = gatefx.generate(model, *ragged_prompts(4, 22, side), max_cache_len=40, **options)
    assert torch.equal(static.tokens, grown.tokens)
    torch.testing.assert_close(static.logits, grown.logits, atol=1e-5, rtol=0)


def test_buffers_stay_and_memory_follows_the_kept_tokens(model: Any, ragged_prompts: Any) -> None:
    generation = gatefx.generate(model, *ragged_prompts(4, 22), max_new_tokens=8, stop=(), max_cache_len=40)
    before = {name: value.data_ptr() for name, value in generation._cache.entries.items()}
    assert generation.prefill.rows == (16 + 18, 11 + 18), "what stays of 22 tokens, and room for 18 more"
    assert generation.prefill.bytes == (34 + 29) * 4 * 2 * 2 * 8 * 4, "batch, keys and values, heads, channels, bytes"
    _ = generation.tokens
    assert {name: value.data_ptr() for name, value in generation.cache.entries.items()} == before
    assert generation.decode.rows == generation.prefill.rows
    assert generation.cache.static is not None
    assert generation.cache.static.left == 18 - 8


def test_a_static_cache_is_gone_on_from_until_it_is_full(model: Any) -> None:
    options = {"stop": (), "budget": 1.0}
    start = gatefx.generate(model, [[5, 6, 7, 8], [9, 10]], max_new_tokens=3, max_cache_len=12, **options)
    said, cache = start.tokens.tolist(), start.cache
    went_on = gatefx.generate(model, [[11, 12], [13, 14]], max_new_tokens=3, cache=cache, **options)
    whole = [a + b + c for a, b, c in zip([[5, 6, 7, 8], [9, 10]], said, [[11, 12], [13, 14]], strict=True)]
    assert torch.equal(went_on.tokens, gatefx.generate(model, whole, max_new_tokens=3, **options).tokens)
    with pytest.raises(InputError, match="were overwritten"):
        gatefx.generate(model, [[11], [13]], max_new_tokens=1, cache=cache, **options)
    left = went_on.cache.static.left  # 12 rows: 4 of the prompt, 3 + 2 + 3 behind it
    assert left == 0
    with pytest.raises(InputError, match="past its static cache"):
        gatefx.generate(model, [[15], [16]], max_new_tokens=1, cache=went_on.cache, **options)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_prompt_read_in_parts_is_written_to_one_buffer(model: Any, ragged_prompts: Any, side: str) -> None:
    options = {"max_new_tokens": 5, "stop": (), "budget": "100%"}
    whole = gatefx.generate(model, *ragged_prompts(4, 22, side), **options)
    found = gatefx.generate(model, *ragged_prompts(4, 22, side), chunk=5, max_cache_len=26, **options)
    assert torch.equal(found.tokens, whole.tokens)
    assert found.decode.rows == (26, 26)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_cache_len": 0}, "counts rows"),
        ({"max_cache_len": True}, "counts rows"),
        ({"max_cache_len": 9, "max_new_tokens": 8}, "max_cache_len of at least 10"),
        ({"max_cache_len": 2, "max_new_tokens": 1, "chunk": 1}, "max_cache_len of at least 3"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(
    model: Any, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], words: str
) -> None:
    def worked(*_: object) -> None:
        raise AssertionError("the prompt was read")

    monkeypatch.setattr(TorchEngine, "prefill", worked)
    budget = 1.0 if "chunk" in options else None
    with pytest.raises(InputError, match=words):
        gatefx.generate(model, [[5, 6, 7]], budget=budget, **options)


def test_sizes_are_given_once_and_encoder_decoders_have_none(model: Any) -> None:
    cache = gatefx.generate(model, [[5, 6, 7]], max_new_tokens=1).cache
    with pytest.raises(InputError, match="its size already"):
        gatefx.generate(model, [[5]], cache=cache, max_cache_len=20)
    batch = tiny_inputs("t5", batch=2, tokens=6)
    gated = gatefx.prepare(tiny("t5"), "ccm", example_inputs=batch)
    deployed = gatefx.optimize(gated, budget="100%", fold=True)
    with pytest.raises(InputError, match="no static cache"):
        gatefx.generate(deployed, batch["input_ids"], batch["attention_mask"], max_cache_len=20, max_new_tokens=2)


def test_a_model_that_was_cast_gets_buffers_and_programs_of_its_new_kind(adapted_decoder: Any) -> None:
    data = [tiny_inputs("llama", batch=4, tokens=24)]
    model = gatefx.optimize(adapted_decoder("llama"), "tspeft", 0.5, data=data, distill_steps=3, progress=False)
    options = {"max_new_tokens": 4, "stop": ()}
    gatefx.generate(model, [[5, 6, 7]], max_cache_len=9, **options)
    model.to(torch.float64)
    model.budget = 0.9
    grown = gatefx.generate(model, [[5, 6, 7]], **options)
    static = gatefx.generate(model, [[5, 6, 7]], max_cache_len=9, **options)
    assert torch.equal(static.tokens, grown.tokens)
    torch.testing.assert_close(static.logits, grown.logits, atol=1e-6, rtol=0)
    assert static.cache.entries["past_key_values.0.key"].dtype is torch.float64


def test_places_go_on_by_group() -> None:
    rows = StaticRows((7, 3), 4)
    assert {name: place.tolist() for name, place in rows.places(2).items()} == {
        "cache_position.0": [7, 8], "cache_position.1": [3, 4],
    }  # fmt: skip
    later = rows.after(3)
    assert [place.tolist() for place in later.places(1).values()] == [[10], [6]]
    assert later.left == 1
    with pytest.raises(InputError, match="at most 1 tokens"):
        later.places(2)
    with pytest.raises(InputError, match="hold 3"):
        rows.places(1)


def test_rows_of_a_cache_length() -> None:
    assert check_cache_length(10, 6, 5) == 4
    with pytest.raises(InputError, match="at least 11"):
        check_cache_length(10, 6, 6)


def test_room_is_zero_and_ranks_have_none() -> None:
    value = torch.randn(2, 3, 4, 5)
    buffer = with_room(value, "past_key_values.0.key", 2)
    assert torch.equal(buffer[:, :, :4], value)
    assert not buffer[:, :, 4:].any()
    assert with_room(torch.ones(2, 4), "past_mask.1", 3).tolist() == [[1, 1, 1, 1, 0, 0, 0]] * 2
    ranks = torch.ones(2, 4, 3)
    assert with_room(ranks, "ranks.router", 3) is ranks
    assert kept_rows({"past_mask.0": (2, 9), "past_mask.1": (2, 4), "past_positions.0": (2, 9)}) == (9, 4)
