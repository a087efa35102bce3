from __future__ import annotations

from typing import Any

import pytest
import torch

import gatefx
from gatefx.errors import GatefxError, InputError, PassError
from gatefx.models.tiny import tiny, tiny_decoder, tiny_inputs


@pytest.fixture
def model(pruned_decoder: Any) -> Any:
    made = pruned_decoder("llama")
    made.budget = 0.5
    return made


def test_streaming_gives_the_tokens_of_the_whole(model: Any, ragged_prompts: Any) -> None:
    ids, mask = ragged_prompts()
    generation = gatefx.generate(model, ids, mask, max_new_tokens=6, stop=())
    first = next(generation)
    assert first.shape == (4,)
    assert generation.decode.calls == 0, "the first token needs the prefill alone"
    rest = list(generation)
    whole = gatefx.generate(model, ids, mask, max_new_tokens=6, stop=()).tokens
    assert torch.equal(torch.stack([first, *rest], 1), whole)
    assert torch.equal(generation.tokens, whole)


def test_lists_of_prompts_are_one_batch(model: Any, ragged_prompts: Any) -> None:
    ids, mask = ragged_prompts()
    rows = [row[real > 0].tolist() for row, real in zip(ids, mask, strict=True)]
    found = gatefx.generate(model, rows, max_new_tokens=5, stop=()).tokens
    alone = torch.cat([gatefx.generate(model, [row], max_new_tokens=5, stop=()).tokens for row in rows])
    assert torch.equal(found, alone), "a row does not see the rows beside it"


def test_a_row_that_stops_is_padded_and_all_rows_end_the_loop(model: Any, ragged_prompts: Any) -> None:
    ids, mask = ragged_prompts()
    free = gatefx.generate(model, ids, mask, max_new_tokens=8, stop=()).tokens
    stop = int(free[0, 2])
    generation = gatefx.generate(model, ids, mask, max_new_tokens=8, stop=stop)
    tokens = generation.tokens
    first = [row.tolist().index(stop) if stop in row else len(row) for row in free]
    assert generation.lengths.tolist() == [min(place + 1, 8) for place in first]
    for row, place in enumerate(first):
        assert torch.equal(tokens[row, : place + 1], free[row, : place + 1])
        assert (tokens[row, place + 1 :] == 0).all()
    one = gatefx.generate(model, ids[:1], mask[:1], max_new_tokens=8, stop=[stop])
    assert one.tokens.shape[1] == first[0] + 1


def test_the_budget_of_a_call_is_its_own(model: Any, ragged_prompts: Any) -> None:
    ids, mask = ragged_prompts()
    few = gatefx.generate(model, ids, mask, max_new_tokens=2, budget="30%")
    many = gatefx.generate(model, ids, mask, max_new_tokens=2, budget=0.9)
    assert few.prefill.rows[1] < many.prefill.rows[1] < many.prefill.rows[0]
    assert few.prefill.bytes < many.prefill.bytes
    assert model.budget == 0.5
    assert few.cache.budget == 0.3


def test_going_on_from_a_cache_is_one_longer_prompt_where_every_token_stays(model: Any) -> None:
    first, further = [[5, 6, 7, 8], [9, 10]], [[11, 12], [13, 14]]
    start = gatefx.generate(model, first, max_new_tokens=3, stop=(), budget=1.0)
    said = start.tokens.tolist()
    went_on = gatefx.generate(model, further, max_new_tokens=4, stop=(), budget=1.0, cache=start.cache)
    whole = [a + b + c for a, b, c in zip(first, said, further, strict=True)]
    assert torch.equal(went_on.tokens, gatefx.generate(model, whole, max_new_tokens=4, stop=(), budget=1.0).tokens)


def test_rows_that_stopped_go_on_behind_their_stop_token(model: Any) -> None:
    """Padding behind a stop token is read by nobody, and takes no position."""
    prompts, further = [[5, 6, 7, 8], [9, 10]], [[11, 12], [13, 14]]
    free = gatefx.generate(model, prompts, max_new_tokens=6, stop=(), budget=1.0).tokens.tolist()
    stop = next(token for token in free[0] if token not in free[1])
    start = gatefx.generate(model, prompts, max_new_tokens=6, stop=stop, budget=1.0)
    ends = start.lengths.tolist()
    assert ends[0] < ends[1] == 6
    went_on = gatefx.generate(model, further, max_new_tokens=4, stop=(), budget=1.0, cache=start.cache)
    whole = [a + b[:end] + c for a, b, end, c in zip(prompts, free, ends, further, strict=True)]
    assert torch.equal(went_on.tokens, gatefx.generate(model, whole, max_new_tokens=4, stop=(), budget=1.0).tokens)


def test_caches_of_another_budget_model_or_batch_are_refused(model: Any, pruned_decoder: Any) -> None:
    cache = gatefx.generate(model, [[5, 6, 7]], max_new_tokens=1).cache
    with pytest.raises(InputError, match="another budget"):
        gatefx.generate(model, [[8]], budget=0.7, cache=cache)
    with pytest.raises(InputError, match="another model"):
        gatefx.generate(pruned_decoder("mistral"), [[8]], cache=cache)
    with pytest.raises(InputError, match="number of sequences"):
        gatefx.generate(model, [[8], [9]], cache=cache)


def test_records_tell_prefill_and_decode_apart(model: Any, ragged_prompts: Any) -> None:
    ids, mask = ragged_prompts()
    generation = gatefx.generate(model, ids, mask, max_new_tokens=5, stop=())
    assert generation.prefill.tokens == int(mask.sum())
    assert generation.prefill.rows == (22, 11)
    _ = generation.tokens
    assert (generation.decode.calls, generation.decode.tokens) == (4, 16), "the last token is never read"
    assert generation.decode.rows == (26, 15)


def test_sampled_texts_repeat_by_their_seed(model: Any) -> None:
    options = {"max_new_tokens": 6, "temperature": 1.0, "top_k": 30, "top_p": 0.95, "stop": ()}
    first, again, other = (gatefx.generate(model, [[5, 6, 7]], seed=seed, **options).tokens for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"input_ids": [[]]}, "empty"),
        ({"input_ids": [[5] * 129]}, "longer than the model has positions"),
        ({"input_ids": [[5] * 100], "max_new_tokens": 30}, "past the model's positions"),
        ({"input_ids": [[5]], "max_new_tokens": 0}, "max_new_tokens"),
        ({"input_ids": [[5]], "budget": 0}, "budget"),
        ({"input_ids": [[5]], "budget": 1.5}, "budget"),
        ({"input_ids": [[5]], "top_p": 0.5}, "temperature"),
    ],
)
def test_wrong_use_is_refused_in_words(model: Any, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(GatefxError, match=words):
        gatefx.generate(model, **arguments)


def test_what_does_not_generate_says_so(adapted_decoder: Any) -> None:
    with pytest.raises(InputError, match="deployed model"):
        gatefx.generate(adapted_decoder("llama"), [[5]])
    batch = tiny_inputs("bert", batch=2, tokens=6)
    encoder = gatefx.prepare(tiny("bert"), "ccm", example_inputs=batch)
    deployed = gatefx.optimize(encoder, budget="100%", fold=True)
    with pytest.raises(InputError, match="cannot generate"):
        gatefx.generate(deployed, [[5]])


def test_the_model_that_was_given_generates_as_before(adapted_decoder: Any, pruned_decoder: Any) -> None:
    untouched = adapted_decoder("llama")
    before = {name: value.clone() for name, value in untouched.state_dict().items()}
    deployed = pruned_decoder("llama")
    gatefx.generate(deployed, [[5, 6, 7]], max_new_tokens=3)
    after = untouched.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_decoder_that_no_programs_are_made_of_still_deploys_and_says_why(
    adapted_decoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PassError("conv_1 stands between a cache and its attention.")

    monkeypatch.setattr("gatefx.passes.decode.programs._continuing", refuse)
    batch = tiny_inputs("llama", batch=2, tokens=6)
    deployed = gatefx.optimize(adapted_decoder("llama"), "weightlora", 4, data=[batch], progress=False)
    assert deployed(**batch).logits.shape == (2, 6, 100)
    with pytest.raises(InputError, match="conv_1 stands between"):
        gatefx.generate(deployed, [[5]])


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gemma3_text", "phi3", "starcoder2", "cohere", "olmo2", "stablelm", "granite"])
def test_further_families_generate_what_they_answer_over_the_whole_text(family: str, ragged_prompts: Any) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {**tiny_decoder("llama").config.to_diff_dict(), "sliding_window": 6}
    for name in ("model_type", "architectures", "transformers_version", "dtype", "rope_parameters"):
        sizes.pop(name, None)
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes)).eval()
    model = get_peft_model(plain, LoraConfig(r=4, target_modules="all-linear"))
    data = [tiny_inputs("llama", batch=4, tokens=24)]
    deployed = gatefx.optimize(model, "weightlora", 3, data=data, progress=False)
    ids, mask = ragged_prompts(3, 18, "left")
    found = gatefx.generate(deployed, ids, mask, max_new_tokens=8, stop=()).tokens
    for _ in range(8):
        following = deployed(input_ids=ids, attention_mask=mask).logits[:, -1].argmax(-1, keepdim=True)
        ids, mask = torch.cat([ids, following], 1), torch.cat([mask, torch.ones_like(following)], 1)
    assert torch.equal(found, ids[:, 18:])
