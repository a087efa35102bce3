"""What `gatefx inspect` does: describe a folder, and run saved gates on texts where that is asked for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from ..errors import InputError
from .console import output, without_warnings
from .inspect import describe, show, with_layers
from .inspect_sparsity import sparsity_json, sparsity_rows, sparsity_table
from .texts import read_texts


@dataclass(frozen=True)
class InspectRequest:
    """The options of the command; see its --help."""

    folder: Path
    text: str | None
    data: Path | None
    html: Path | None
    base: str | None
    text_column: str | None
    max_length: int


def run_inspect(request: InspectRequest, *, sparsity: bool, as_json: bool) -> None:
    """Print what the folder holds.

    Raises:
        GatefxError: a folder that does not verify, or a request that it cannot answer.
    """
    if request.text is not None and not request.text.strip():
        raise InputError("There is no text to show.", given=repr(request.text), expected="a sentence")
    texts = None if request.data is None else read_texts(request.data, request.text_column)
    description = _described(request, texts)
    if sparsity:
        rows = sparsity_rows(description)
        if as_json:
            typer.echo(json.dumps(sparsity_json(rows), indent=2))
        else:
            output().print(sparsity_table(rows))
    elif as_json:
        typer.echo(json.dumps(with_layers(description), indent=2))
    else:
        show(description, output())


def _described(request: InspectRequest, texts: list[str] | None) -> dict[str, Any]:
    """The folder's description, with what its gates decide on the texts; the heat map is written on the way."""
    if request.text is None and texts is None:
        return describe(request.folder)
    if _is_exported(request.folder):
        return _exported(request, texts)
    from ..models.hf import quiet, transformers_for
    from .inspect_text import measured, open_gates, write_text_map

    with without_warnings(), quiet(transformers_for("this command")):
        gates = open_gates(request.folder, request.base)
        if request.html is not None and request.text is not None:
            write_text_map(gates, request.text, request.html)
        wanted = texts if texts is not None else [request.text or ""]
        return measured(describe(request.folder), gates, wanted, max_length=request.max_length)


def _exported(request: InspectRequest, texts: list[str] | None) -> dict[str, Any]:
    """An exported model's description: its figures are those of the data that calibrated it."""
    if texts is not None or request.html is None or request.text is None:
        raise InputError(
            "An exported model decides inside its engine; its figures are those of the data that calibrated it.",
            given=f"{request.folder}, an exported model, with {'--data' if texts is not None else '--text'}",
            expected="saved gates to be run on other texts, or --text with --html: the tokens that each cut keeps",
            remedy="pass the folder that gated.save_pretrained wrote",
        )
    from .artifact_tokens import write_artifact_map

    description = describe(request.folder)
    write_artifact_map(request.folder, request.text, request.html)
    return description


def _is_exported(folder: Path) -> bool:
    """Whether the folder says that it holds an exported model; nothing is verified yet."""
    from ..runtime.manifest import MANIFEST_FILE, unseal

    return (folder / MANIFEST_FILE).is_file() and unseal(folder / MANIFEST_FILE).get("kind") == "model"
