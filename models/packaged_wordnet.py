"""Sentence pairs from WordNet's nouns: does this gloss describe a kind of X?"""

from __future__ import annotations

import os
import random
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .packaged_cache import PackagedDataError

# A gloss below this many characters says too little.
_SHORTEST_GLOSS = 15
# How far above a noun a true claim may reach; higher ones ("entity") are true of nearly everything.
_HIGHEST = 3
_DRAWS = 20


@dataclass(frozen=True)
class _Noun:
    offset: str
    topic: int  # the lexicographer file: animal, artifact, …
    words: tuple[str, ...]
    gloss: str
    parents: tuple[str, ...]  # offsets of its hypernyms


def hypernym_pairs(seed: int) -> list[tuple[str, str, int]]:
    """Shuffled ("noun: gloss", "noun is a kind of X", label) triples, at most one for each synset.

    Label 1: X is one to three levels above the noun. Label 0: X is the parent of another noun of the same topic
    and nowhere above this one. Pairs whose gloss holds a word of X are left out: they need no understanding.

    Raises:
        PackagedDataError: WordNet is not installed.
    """
    nouns = {noun.offset: noun for noun in _nouns()}
    topics: defaultdict[int, set[str]] = defaultdict(set)
    for noun in nouns.values():
        topics[noun.topic].update(parent for parent in noun.parents if parent in nouns)
    candidates = {topic: sorted(parents) for topic, parents in topics.items()}
    draw = random.Random(seed)
    pairs = []
    for noun in nouns.values():
        above = _above(noun, nouns)
        near = [offset for offset, levels in above.items() if levels <= _HIGHEST]
        if not near or len(noun.gloss) < _SHORTEST_GLOSS:
            continue
        label = int(draw.random() < 0.5)  # noqa: PLR2004 — a fair coin
        if label == 0:
            others = draw.sample(candidates[noun.topic], min(_DRAWS, len(candidates[noun.topic])))
            near = [offset for offset in others if offset not in above and offset != noun.offset]
            if not near:
                continue
        kind = nouns[draw.choice(near)]
        if not _mentions(noun.gloss, kind):
            claim = f"{noun.words[0]} is a kind of {kind.words[0]}"
            pairs.append((f"{noun.words[0]}: {noun.gloss}", claim, label))
    draw.shuffle(pairs)
    return pairs


def _above(noun: _Noun, nouns: dict[str, _Noun]) -> dict[str, int]:
    """Offset → levels up, on the path that is walked first, of everything above `noun`."""
    above: dict[str, int] = {}
    open_ends = [(parent, 1) for parent in noun.parents if parent in nouns]
    while open_ends:
        offset, levels = open_ends.pop()
        if offset not in above:
            above[offset] = levels
            open_ends += [(parent, levels + 1) for parent in nouns[offset].parents if parent in nouns]
    return above


def _mentions(gloss: str, noun: _Noun) -> bool:
    return any(re.search(rf"\b{re.escape(word)}s?\b", gloss, re.IGNORECASE) for word in noun.words)


def _nouns() -> Iterator[_Noun]:
    """The nouns of WordNet 3.0 in file order (format: wndb(5WN))."""
    folder = Path(os.environ.get("WNSEARCHDIR") or "/usr/share/wordnet")
    if not (folder / "data.noun").is_file():
        raise PackagedDataError(
            "The data set 'wnli' is made from WordNet 3.0, which is not installed.",
            given=str(folder),
            expected="a folder with data.noun",
            remedy="install the system package wordnet-base (Debian), or set WNSEARCHDIR to WordNet's dict folder",
        )
    with open(folder / "data.noun", encoding="latin-1") as file:
        for line in file:
            if not line.startswith("  "):  # the licence
                yield _noun(line)


def _noun(line: str) -> _Noun:
    fields, gloss = line.split(" | ", 1)
    parts = fields.split()
    word_count = int(parts[3], 16)
    words = [re.sub(r"\(.*?\)", "", word).replace("_", " ") for word in parts[4 : 4 + 2 * word_count : 2]]
    pointers = 4 + 2 * word_count
    symbols = zip(parts[pointers + 1 :: 4], parts[pointers + 2 :: 4], strict=False)
    return _Noun(
        offset=parts[0],
        topic=int(parts[1]),
        words=tuple(words),
        gloss=gloss.split('; "')[0].strip().strip(";"),
        parents=tuple(target for symbol, target in symbols if symbol in {"@", "@i"}),
    )
