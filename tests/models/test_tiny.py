"""Every small model runs on its inputs, follows its seed, and leaves the caller's random state alone."""

from __future__ import annotations

import pytest
import torch

from gatefx.errors import InputError
from gatefx.models.tiny import ALL_FAMILIES, FAMILIES, SEQUENCE_TO_SEQUENCE, tiny, tiny_inputs

pytest.importorskip("transformers", reason="small models are built by transformers")

DECODERS = {"gpt2", "llama", "mistral", "qwen3"}


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_a_small_model_answers_for_ragged_rows(family: str) -> None:
    model = tiny(family, num_labels=3)

    logits = model(**tiny_inputs(model, batch=4, tokens=7)).logits

    assert logits.shape == ((4, 4, 100) if family in SEQUENCE_TO_SEQUENCE else (4, 3))
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()
    assert logits.std(0).mean() > 0.04, "rows of different content must differ visibly"
    assert not model.training


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_follow_the_seed_and_nothing_else(family: str) -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first = tiny(family, seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(12)
    again, other = tiny(family, seed=3).state_dict(), tiny(family, seed=4).state_dict()

    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_bias_is_zero_and_no_norm_scale_is_one(family: str) -> None:
    vectors = {name: value for name, value in tiny(family).named_parameters() if value.ndim == 1}

    assert vectors
    assert all(value.abs().max() > 0 and (value - 1).abs().max() > 0 for value in vectors.values())


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"vit"}))
def test_padding_is_right_masked_and_ignored(family: str) -> None:
    model = tiny(family)
    inputs = tiny_inputs(model, batch=3, tokens=8, seed=5)
    mask = inputs["attention_mask"].bool()
    assert mask[0].all()
    assert mask[:, 0].all()
    assert not mask[1:, -1].any()
    assert (mask[:, 1:] <= mask[:, :-1]).all()
    assert (inputs["input_ids"][~mask] == model.config.pad_token_id).all()
    assert (inputs["input_ids"][mask] != model.config.pad_token_id).all()

    states = model.base_model(**inputs)[0]
    scribbled = {**inputs, "input_ids": inputs["input_ids"].masked_fill(~mask, 9)}
    kept = slice(None) if family in SEQUENCE_TO_SEQUENCE else mask
    torch.testing.assert_close(model.base_model(**scribbled)[0][kept], states[kept])


@pytest.mark.parametrize("family", sorted(DECODERS))
def test_decoders_read_the_last_word_of_a_row_not_its_padding(family: str) -> None:
    model = tiny(family)
    inputs = tiny_inputs(model, batch=3, tokens=8, seed=5)
    length = int(inputs["attention_mask"][1].sum())

    alone = model(**{name: value[1:2, :length] for name, value in inputs.items()}).logits

    torch.testing.assert_close(model(**inputs).logits[1:2], alone)


def test_inputs_follow_their_seed_and_leave_the_random_state() -> None:
    before = torch.get_rng_state()
    first, again, other = (tiny_inputs("bert", batch=3, seed=seed) for seed in (1, 1, 2))

    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first["input_ids"], again["input_ids"])
    assert not torch.equal(first["input_ids"], other["input_ids"])


def test_rows_are_full_without_ragged() -> None:
    assert tiny_inputs("bert", batch=3, ragged=False)["attention_mask"].all()


@pytest.mark.parametrize(("batch", "tokens"), [(1, 1), (1, 128), (5, 1)])
def test_extreme_sizes_run(batch: int, tokens: int) -> None:
    for family in ("bert", "roberta", "mpnet", "t5", "gpt2"):
        assert tiny(family)(**tiny_inputs(family, batch=batch, tokens=tokens)).logits.shape[0] == batch


@pytest.mark.parametrize(("batch", "tokens"), [(0, 7), (2, 0), (2, 129)])
def test_impossible_sizes_are_refused(batch: int, tokens: int) -> None:
    with pytest.raises(InputError, match="1 to 128 tokens"):
        tiny_inputs("bert", batch=batch, tokens=tokens)


def test_an_unknown_family_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="modernbert"):
        tiny("berd")
    with pytest.raises(InputError, match="modernbert"):
        tiny_inputs("berd")
