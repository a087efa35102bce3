"""Batches of labelled text: every text once, no batch of one, and orders that follow the seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gatefx.errors import InputError
from gatefx.models.packaged import PackagedDataError, batches, sentences


class LetterTokenizer:
    """One id for each letter, [0] between the texts of a pair; stands in for a tokenizer of transformers."""

    def __call__(
        self,
        firsts: list[str],
        seconds: list[str] | None = None,
        *,
        truncation: bool,
        max_length: int,
        padding: bool = False,
        return_tensors: str | None = None,
    ) -> dict[str, Any]:
        joined = firsts if seconds is None else [f"{a}\0{b}" for a, b in zip(firsts, seconds, strict=True)]
        ids = [[ord(letter) for letter in text][:max_length] for text in joined]
        if not padding:
            return {"input_ids": ids}
        width = max(map(len, ids))
        return {
            "input_ids": torch.tensor([row + [0] * (width - len(row)) for row in ids]),
            "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids]),
        }


TOKENIZER: Any = LetterTokenizer()
TEXTS = ["ccc", "a", "bb", "dddd", "eeeee", "f", "gg"]
LABELS = list(range(7))


@given(
    count=st.integers(1, 40),
    batch_size=st.integers(1, 9),
    seed=st.none() | st.integers(0, 5),
    by_length=st.booleans(),
)
def test_every_text_comes_once_with_its_label_and_no_batch_is_alone(
    count: int, batch_size: int, seed: int | None, by_length: bool
) -> None:
    texts = [chr(97 + index % 26) * (1 + index % 7) for index in range(count)]
    made = batches(TOKENIZER, texts, range(count), batch_size=batch_size, by_length=by_length, seed=seed)

    labels = torch.cat([batch["labels"] for batch in made])
    assert sorted(labels.tolist()) == list(range(count))
    for batch in made:
        assert batch["input_ids"].shape == batch["attention_mask"].shape
        lengths = batch["attention_mask"].sum(1)
        assert lengths.max() == batch["input_ids"].shape[1]
        assert lengths.tolist() == [len(texts[label]) for label in batch["labels"]]
        assert 1 < len(lengths) <= batch_size + 1 or batch_size == 1 or count == 1


def test_without_a_seed_batches_go_from_short_to_long() -> None:
    made = batches(TOKENIZER, TEXTS, LABELS, batch_size=3)

    assert [batch["labels"].tolist() for batch in made] == [[1, 5, 2], [6, 0, 3, 4]]


def test_the_given_order_is_kept_on_request() -> None:
    made = batches(TOKENIZER, TEXTS, LABELS, batch_size=4, by_length=False)

    assert [batch["labels"].tolist() for batch in made] == [[0, 1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize("by_length", [True, False])
def test_the_seed_decides_the_order(by_length: bool) -> None:
    def order(seed: int) -> list[list[int]]:
        texts = [text * 2 for text in TEXTS * 4]
        made = batches(TOKENIZER, texts, range(28), batch_size=4, by_length=by_length, seed=seed)
        return [batch["labels"].tolist() for batch in made]

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_prefix_pairs_and_truncation_reach_the_tokenizer() -> None:
    (batch,) = batches(TOKENIZER, [("ab", "cd"), ("x", "y")], batch_size=2, prefix="q:", max_length=6, by_length=False)

    assert [ord(letter) for letter in "q:ab\0c"] == batch["input_ids"][0].tolist()
    assert "labels" not in batch


@pytest.mark.parametrize(
    ("texts", "labels", "batch_size"),
    [([], None, 2), (["a"], [1, 0], 2), (["a", "b"], None, 0), (["a", ("b", "c")], None, 2)],
)
def test_what_cannot_be_batched_is_refused(texts: list[Any], labels: list[int] | None, batch_size: int) -> None:
    with pytest.raises(InputError):
        batches(TOKENIZER, texts, labels, batch_size=batch_size)


def test_an_unknown_data_set_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="rt, wnli"):
        sentences("sst2")


def test_a_missing_wordnet_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WNSEARCHDIR", str(tmp_path))

    with pytest.raises(PackagedDataError, match="wordnet-base"):
        sentences("wnli")


# offset, lexicographer file, type, word count, words, pointer count, pointers | gloss; "example"
NOUNS = """\
  1 This line stands for the licence.
00000001 05 n 01 animal 0 000 | a living thing that moves by itself; "animals and plants"
00000002 05 n 02 dog 0 domestic_dog(a) 0 001 @ 00000001 n 0000 | a tame beast that barks at strangers; "the dog ran"
00000003 05 n 01 poodle 0 001 @ 00000002 n 0000 | a curly companion, clever and vain
00000004 05 n 01 bird 0 001 @ 00000001 n 0000 | a warm-blooded one with feathers and wings
00000005 05 n 01 Woodstock 0 001 @i 00000004 n 0000 | the small yellow friend of a beagle
00000006 05 n 01 hen 0 001 @ 00000004 n 0000 | a female bird that lays eggs
"""
ABOVE = {
    "dog": {"animal"},
    "poodle": {"dog", "animal"},
    "bird": {"animal"},
    "Woodstock": {"bird", "animal"},
    "hen": {"bird", "animal"},
}


def test_wordnet_pairs_are_labelled_by_the_hierarchy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data.noun").write_text(NOUNS, encoding="latin-1")
    monkeypatch.setenv("WNSEARCHDIR", str(tmp_path))

    seen = set()
    for seed in range(30):
        data = sentences("wnli", seed=seed)
        pairs = zip(data.train_texts + data.test_texts, data.train_labels + data.test_labels, strict=True)
        for (gloss, claim), label in pairs:
            noun, kind = claim.split(" is a kind of ")
            assert gloss.startswith(f"{noun}: ")
            assert "the dog ran" not in gloss, "examples are no part of the gloss"
            assert label == int(kind in ABOVE[noun])
            assert (noun, kind) != ("hen", "bird"), "the gloss gives it away"
            seen.add((noun, kind, label))
    assert {("poodle", "dog", 1), ("Woodstock", "dog", 0)} <= seen
    assert sentences("wnli", seed=1) == sentences("wnli", seed=1)
