"""Read the texts of a --data file: unlabelled sentences that calibrate gates, or train them.

.txt           a text per line
.csv, .tsv     a header, then a column of texts
.jsonl         an object per line, with a field of text
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import InputError

USUAL_COLUMNS = ("text", "sentence", "content")
"""Tried in this order where no column is named."""

_FEWEST = 2  # one example cannot show which axis is the batch


def read_texts(path: Path, column: str | None = None) -> list[str]:
    """The texts of a file, without empty ones.

    Args:
        path: UTF-8; its ending says how to read it.
        column: of a table, or field of JSON lines. None takes the only one, or the first of `USUAL_COLUMNS`.

    Raises:
        InputError: no such file, another ending, no UTF-8, no such column, or fewer than two texts.
    """
    reader = _READERS.get(path.suffix.lower())
    if not path.is_file():
        raise InputError("There is no data file of this name.", given=str(path), expected=_expected())
    if reader is None:
        raise InputError(
            "The ending of the data file is none that gatefx reads.", given=str(path), expected=_expected()
        )
    try:
        found = reader(path, column)
    except (UnicodeDecodeError, csv.Error, json.JSONDecodeError) as error:
        raise InputError(
            "The data file cannot be read.", given=f"{path}: {error}", expected=f"UTF-8, and {_expected()}"
        ) from error
    texts = [text.strip() for text in found if text.strip()]
    if len(texts) < _FEWEST:
        raise InputError(
            "The data file is empty." if not texts else "The data file holds a single text.",
            given=f"{path}, {len(texts)} texts",
            expected="at least two texts; a few hundred calibrate well",
        )
    return texts


def _expected() -> str:
    return f"a file that ends in {', '.join(_READERS)}"


def _lines(path: Path, column: str | None) -> list[str]:
    if column is not None:
        raise InputError("A text file has no columns.", given=f"--text-column {column}", expected="a text per line")
    return path.read_text(encoding="utf-8-sig").splitlines()


def _table(delimiter: str) -> Callable[[Path, str | None], list[str]]:
    def read(path: Path, column: str | None) -> list[str]:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, delimiter=delimiter)
            name = _column(path, column, tuple(rows.fieldnames or ()))
            return [row[name] or "" for row in rows]

    return read


def _json_lines(path: Path, column: str | None) -> list[str]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if not rows:
        return []
    first = rows[0]
    if not isinstance(first, dict):
        raise InputError("A line of the data file is no JSON object.", given=repr(first), expected='{"text": "…"}')
    name = _column(path, column, tuple(key for key, value in first.items() if isinstance(value, str)))
    odd = [
        number for number, row in enumerate(rows, 1) if not isinstance(row, dict) or not isinstance(row.get(name), str)
    ]
    if odd:
        raise InputError(f"A line has no text in {name!r}.", given=f"{path}, object {odd[0]}", expected="a string")
    return [row[name] for row in rows]


def _column(path: Path, wanted: str | None, found: Sequence[str]) -> str:
    if wanted is not None and wanted in found:
        return wanted
    usual = [name for name in USUAL_COLUMNS if name in found]
    if wanted is None and (usual or len(found) == 1):
        return usual[0] if usual else found[0]
    raise InputError(
        f"The data file has no column {wanted!r}."
        if wanted
        else "The data file has no column that is plainly the text.",
        given=f"{path} with {', '.join(map(repr, found)) or 'no columns'}",
        expected="the column that holds the texts",
        remedy="pass --text-column NAME",
    )


_READERS: dict[str, Callable[[Path, str | None], list[str]]] = {
    ".txt": _lines,
    ".csv": _table(","),
    ".tsv": _table("\t"),
    ".jsonl": _json_lines,
}
