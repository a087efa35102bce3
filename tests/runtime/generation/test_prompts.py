from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from gatefx.errors import InputError
from gatefx.runtime.generation.engine import DecoderFacts, last_places, last_tokens, places_after
from gatefx.runtime.generation.prompts import check_length, read_prompt

FACTS = DecoderFacts(vocabulary=10, positions=8, stop=(2,), pad=0)


def test_lists_of_different_lengths_are_padded_on_the_right() -> None:
    prompt = read_prompt([[3, 4, 5], [6]], None, FACTS)
    assert prompt.ids.tolist() == [[3, 4, 5], [6, 0, 0]]
    assert prompt.mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert prompt.longest == 3


def test_arrays_and_masks_of_any_integer_type() -> None:
    prompt = read_prompt(np.array([[3, 4]], dtype=np.int32), np.array([[0, 1]], dtype=bool), FACTS)
    assert prompt.ids.dtype == prompt.mask.dtype == torch.int64
    assert prompt.longest == 1


@pytest.mark.parametrize(
    ("ids", "mask", "words"),
    [
        ([], None, "no prompts"),
        ([[]], None, "empty"),
        ([3, 4], None, "no prompts"),
        (torch.zeros(0, 4).long(), None, "empty"),
        (torch.ones(1, 0).long(), None, "empty"),
        ([[3, 4], [5, 6]], [[1, 1], [0, 0]], "empty"),
        ([[3, 4]], [[1]], "shapes"),
        ([[3, 4]], [[1, 2]], "0 and 1"),
        ([[3, 10]], None, "does not know"),
        (torch.tensor([[-1, 3]]), None, "does not know"),
        (torch.tensor([3, 4]), None, "no batch"),
        (torch.tensor([[3.0]]), None, "no batch"),
    ],
)
def test_prompts_that_are_none(ids: Any, mask: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_prompt(ids, mask, FACTS)


def test_padding_may_hold_numbers_that_the_model_does_not_know() -> None:
    assert read_prompt([[-100, 3]], [[0, 1]], FACTS).longest == 1


def test_positions_limit_prompt_and_generation() -> None:
    prompt = read_prompt([[3] * 6], None, FACTS)
    check_length(prompt, (-1,), 3, FACTS)
    with pytest.raises(InputError, match="max_new_tokens of at most 3"):
        check_length(prompt, (-1,), 4, FACTS)
    with pytest.raises(InputError, match="longer than the model has positions"):
        check_length(prompt, (3,), 1, FACTS)
    check_length(prompt, (100,), 1000, DecoderFacts(10, None, (), 0))


def test_an_encoder_decoders_source_and_answer_have_positions_of_their_own() -> None:
    facts = DecoderFacts(10, 8, (2,), 0, start=(4,))
    prompt = read_prompt([[3] * 8], None, facts)
    check_length(prompt, None, 8, facts)
    with pytest.raises(InputError, match="max_new_tokens of at most 8"):
        check_length(prompt, None, 9, facts)
    with pytest.raises(InputError, match="longer than the model has positions"):
        check_length(read_prompt([[3] * 9], None, facts), None, 1, facts)
    check_length(read_prompt([[3]], None, facts), (5,), 2, facts)  # one more token of an answer of six


def test_places_count_real_tokens_behind_what_was_read() -> None:
    mask = torch.tensor([[0, 1, 1], [1, 1, 0]])
    assert places_after((-1, -1), mask).tolist() == [[0, 0, 1], [0, 1, 1]]
    places = places_after((4, 9), mask)
    assert places.tolist() == [[4, 5, 6], [10, 11, 11]]
    assert last_places(places_after((4, 9), torch.tensor([[0], [1]]))) == (4, 10), "a row that reads nothing stays"
    assert last_places(places) == (6, 11)


def test_the_last_real_tokens_logits() -> None:
    logits = torch.arange(12.0).view(2, 3, 2)
    mask = torch.tensor([[0, 1, 1], [1, 1, 0]])
    assert last_tokens(logits, mask).tolist() == [[4.0, 5.0], [8.0, 9.0]]
    assert last_tokens(logits[:, :1], mask).tolist() == [[0.0, 1.0], [6.0, 7.0]]
