"""The folder that export writes, and the check of a folder that load reads.

Every file is listed in `gatefx.json` with its size and SHA-256, but for what is `built_later` on the machine that runs
it, as an engine is: that is listed by name. A folder appears under its name complete or not at
all. Nothing is ever unpickled: weights are safetensors or ONNX data, everything else is JSON or text.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import ArtifactError
from .manifest import BUILT_LATER, MANIFEST_FILE, seal, unseal


@dataclass(frozen=True)
class Artifact:
    """An artifact folder whose manifest was checked.

    Attributes:
        path: the folder.
        manifest: the fields of its `gatefx.json`, see `runtime/manifest.py`.
    """

    path: Path
    manifest: Mapping[str, Any]

    @classmethod
    def open(cls, folder: str | os.PathLike[str], *, verify: bool = True) -> Artifact:
        """The artifact in `folder`.

        Args:
            folder: what export wrote.
            verify: read every file and compare hashes. Without it only names and sizes are compared.

        Raises:
            ArtifactError: a file is missing, extra, truncated or edited; the file is named.
        """
        path = Path(folder)
        if not path.is_dir():
            raise ArtifactError(
                "There is no artifact folder of this name.",
                given=str(path),
                expected="a folder that gatefx.export wrote",
            )
        manifest = unseal(path / MANIFEST_FILE)
        listed: Mapping[str, Mapping[str, Any]] = manifest["files"]
        found = set(_file_names(path)) - {MANIFEST_FILE, *manifest.get(BUILT_LATER, ())}
        for name in sorted(found.symmetric_difference(listed)):
            raise ArtifactError(
                f"The artifact {path} lacks the file {name!r}."
                if name in listed
                else f"The artifact {path} holds a file that its manifest does not list: {name!r}.",
                expected=", ".join(sorted(listed)),
                remedy="Fetch the folder again, or export the model again.",
            )
        for name, entry in listed.items():
            _check_file(path / name, name, entry, verify=verify)
        return cls(path, manifest)

    def file(self, name: str) -> Path:
        """The path of the file `name`.

        Raises:
            ArtifactError: the manifest lists no such file.
        """
        if name not in self.manifest["files"]:
            raise ArtifactError(
                f"The artifact {self.path} has no file {name!r}.", expected=", ".join(self.manifest["files"])
            )
        return self.path / name


class ArtifactWriter:
    """Writes an artifact folder in one step.

    ```
    with ArtifactWriter("out") as writer:
        (writer.path / "model.onnx").write_bytes(...)
        writer.commit({"methods": {"ccm": {}}, "budget": 6, "inputs": [...], "outputs": [...], "axes": {...}})
    ```

    Files go to a hidden sibling of the folder; `commit` hashes them, writes the manifest and renames. Leaving the
    block without a commit, by an exception or otherwise, leaves neither folder nor sibling.
    """

    def __init__(self, folder: str | os.PathLike[str], overwrite: bool = False) -> None:
        self._folder = Path(os.path.abspath(folder))
        self._overwrite = overwrite
        self._staging: Path | None = None
        self._made: list[Path] = []

    @property
    def path(self) -> Path:
        """Where to write the files until the commit.

        Raises:
            ArtifactError: outside the `with` block, or after the commit.
        """
        if self._staging is None:
            raise ArtifactError("The artifact is not open for writing.", remedy="Use the writer in a `with` block.")
        return self._staging

    def __enter__(self) -> ArtifactWriter:
        self._check_target()
        self._made = [parent for parent in self._folder.parents if not parent.exists()]
        try:
            self._folder.parent.mkdir(parents=True, exist_ok=True)
            self._staging = self._sibling("writing")
            self._staging.mkdir()
        except OSError as error:
            self._discard()
            raise ArtifactError(
                "The artifact folder cannot be made.", given=str(self._folder), expected=str(error)
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._staging is None:
            return
        self._discard()
        if kind is None:
            raise ArtifactError(
                "The artifact was never committed, so nothing was written.",
                given=str(self._folder),
                remedy="Call .commit(description) inside the `with` block.",
            )

    def commit(self, description: Mapping[str, Any]) -> Artifact:
        """Seal the files written so far and give the folder its name; nothing can be added afterwards.

        Args:
            description: method, budget, inputs, outputs, axes, and free fields, see `runtime/manifest.py`.

        Raises:
            ArtifactError: an incomplete description, a link among the files, or a target that appeared meanwhile.
        """
        staging = self.path
        files = {name: _measured(staging / name) for name in sorted(_file_names(staging))}
        (staging / MANIFEST_FILE).write_text(seal(description, files), encoding="utf-8")
        self._check_target()
        self._rename(staging)
        self._staging = None
        return Artifact(self._folder, unseal(self._folder / MANIFEST_FILE))

    def _check_target(self) -> None:
        if not os.path.lexists(self._folder):
            return
        if not self._overwrite:
            raise ArtifactError(
                "The target exists; nothing was written.",
                given=str(self._folder),
                expected="a name that is not taken",
                remedy="Choose another folder, or pass overwrite=True to replace this one.",
            )
        empty = self._folder.is_dir() and not any(self._folder.iterdir())
        if not empty and not (self._folder / MANIFEST_FILE).is_file():
            raise ArtifactError(
                "The target is no gatefx artifact, so overwrite=True does not delete it.",
                given=str(self._folder),
                expected=f"a folder with a {MANIFEST_FILE}, or a name that is not taken",
            )

    def _rename(self, staging: Path) -> None:
        """Swap the folder in. The old one is moved aside first, and comes back if the new one cannot take its place."""
        old = self._sibling("replaced") if os.path.lexists(self._folder) else None
        try:
            if old is not None:
                self._folder.rename(old)
            staging.rename(self._folder)
        except OSError as error:
            if old is not None and os.path.lexists(old):
                old.rename(self._folder)
            raise ArtifactError(
                "The finished artifact could not take its name.", given=str(self._folder), expected=str(error)
            ) from error
        if old is not None:
            _remove(old)

    def _sibling(self, purpose: str) -> Path:
        return self._folder.with_name(f".{self._folder.name}.{purpose}.{secrets.token_hex(6)}")

    def _discard(self) -> None:
        if self._staging is not None:
            _remove(self._staging)
            self._staging = None
        for parent in self._made:
            with contextlib.suppress(OSError):
                parent.rmdir()


def _remove(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def _file_names(folder: Path) -> Iterator[str]:
    """Names of all files below `folder`, relative to it, with forward slashes."""
    for root, folders, names in os.walk(folder):
        for name in [*names, *(name for name in folders if os.path.islink(os.path.join(root, name)))]:
            yield (Path(root) / name).relative_to(folder).as_posix()


def _measured(path: Path) -> dict[str, Any]:
    if path.is_symlink():
        raise ArtifactError("An artifact holds files, not links.", given=str(path), remedy="Copy the file instead.")
    return {"sha256": _sha256(path), "bytes": path.stat().st_size}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_file(path: Path, name: str, entry: Mapping[str, Any], *, verify: bool) -> None:
    remedy = "Fetch the folder again, or export the model again."
    size = path.stat().st_size if path.is_file() else 0
    if size != entry["bytes"]:
        raise ArtifactError(
            f"The file {name!r} of the artifact {path.parent} "
            + ("is truncated." if size < entry["bytes"] else "is larger than it was when it was written."),
            given=f"{size} bytes",
            expected=f"{entry['bytes']} bytes",
            remedy=remedy,
        )
    found = _sha256(path) if verify else entry["sha256"]
    if found != entry["sha256"]:
        raise ArtifactError(
            f"The file {name!r} of the artifact {path.parent} was changed after it was written.",
            given=f"sha256 {found}",
            expected=f"sha256 {entry['sha256']}",
            remedy=remedy,
        )
