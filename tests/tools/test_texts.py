from __future__ import annotations

import json
from pathlib import Path

import pytest

from gatefx.errors import InputError
from gatefx.tools.texts import read_texts

TEXTS = ["a fine film", "dull, and long", 'he said "no"']


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def test_lines_without_empty_ones_and_without_a_byte_order_mark(tmp_path: Path) -> None:
    assert read_texts(written(tmp_path / "t.txt", "\ufeff" + "\n\n".join(TEXTS) + "\n  \n")) == TEXTS


def test_the_column_named_text_is_found_among_others(tmp_path: Path) -> None:
    rows = 'id,text\n1,a fine film\n2,"dull, and long"\n3,"he said ""no"""\n'
    assert read_texts(written(tmp_path / "t.csv", rows)) == TEXTS


def test_the_only_column_needs_no_name(tmp_path: Path) -> None:
    assert read_texts(written(tmp_path / "t.tsv", "review\na fine film\ndull, and long\n")) == TEXTS[:2]


def test_a_field_of_json_lines(tmp_path: Path) -> None:
    lines = "\n".join(json.dumps({"label": 1, "review": text}) for text in TEXTS)
    assert read_texts(written(tmp_path / "t.jsonl", lines)) == TEXTS
    assert read_texts(written(tmp_path / "u.jsonl", lines), "review") == TEXTS


@pytest.mark.parametrize(
    ("name", "content", "column", "said"),
    [
        ("t.txt", "", None, "is empty"),
        ("t.txt", "one\n", None, "a single text"),
        ("t.txt", b"\xff\xfe\x00", None, "cannot be read"),
        ("t.txt", "a\nb", "text", "no columns"),
        ("t.parquet", "a\nb", None, "ending"),
        ("t.csv", "", None, "plainly the text"),
        ("t.csv", "id,review\n1,a\n", None, "plainly the text"),
        ("t.csv", "id,review\n1,a\n", "body", "no column 'body'"),
        ("t.jsonl", "{oops", None, "cannot be read"),
        ("t.jsonl", "[1]\n", None, "no JSON object"),
        ("t.jsonl", '{"text": "a"}\n{"text": 3}\n', None, "no text in 'text'"),
    ],
)
def test_refusals_say_why(tmp_path: Path, name: str, content: str | bytes, column: str | None, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_texts(written(tmp_path / name, content), column)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.txt"):
        read_texts(tmp_path / "nowhere.txt")
