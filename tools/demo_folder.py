"""Where a demo goes: a folder that appears whole or not at all, and never replaces what is no demo."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import ArtifactError

MARKER = "results.json"


def choose_folder(wanted: Path | None, default: Path, *, overwrite: bool) -> Path:
    """The folder to write.

    Args:
        wanted: what the caller named: taken means an error. None: the default, or the next free number after it, so
            that a second run neither fails nor loses the first.
        overwrite: replace a folder that an earlier demo wrote.

    Raises:
        ArtifactError: the folder is taken, or is no demo's.
    """
    if wanted is None and not overwrite:
        return next(path for path in _numbered(default) if not path.exists())
    folder = default if wanted is None else wanted
    if not folder.exists():
        return folder
    if not overwrite:
        raise ArtifactError(
            "The target exists; nothing was written.",
            given=str(folder),
            expected="a name that is not taken",
            remedy="choose another folder, or pass --overwrite to replace an earlier demo",
        )
    if not folder.is_dir() or (any(folder.iterdir()) and not (folder / MARKER).is_file()):
        raise ArtifactError(
            "The target is no earlier demo, so --overwrite does not delete it.",
            given=str(folder),
            expected=f"a folder with a {MARKER}, or a name that is not taken",
        )
    return folder


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A hidden sibling to write to, which takes the folder's name when the block ends well and vanishes otherwise.

    Raises:
        ArtifactError: the sibling cannot be made.
    """
    target = folder.absolute()
    sibling = target.with_name(f".{target.name}.writing.{secrets.token_hex(4)}")
    try:
        sibling.mkdir(parents=True)
    except OSError as error:
        raise ArtifactError("The folder cannot be made.", given=str(folder), expected=str(error)) from error
    try:
        yield sibling
        if target.exists():
            shutil.rmtree(target)
        sibling.rename(target)
    finally:
        shutil.rmtree(sibling, ignore_errors=True)


def _numbered(path: Path) -> Iterator[Path]:
    yield path
    number = 2
    while True:
        yield path.with_name(f"{path.name}-{number}")
        number += 1
