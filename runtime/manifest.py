"""`gatefx.json`: what an artifact folder says about itself, and how it is checked.

The file is one JSON object. Its field `manifest_sha256` is the SHA-256 of all other fields in canonical form (sorted
keys, no spaces, UTF-8), so that an edit of the manifest itself is noticed too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from ..errors import ArtifactError

MANIFEST_FILE = "gatefx.json"
SCHEMA_VERSION = 1
SEAL = "manifest_sha256"

DESCRIBED = ("methods", "budget", "inputs", "outputs", "axes")
"""What the exporter must state. Further fields (`sites`, `report`, `runtime_budgets`, …) are free."""

MODEL, DECODER, OPTIMUM_DECODER = "model", "decoder", "optimum decoder"
"""The field `kind` of what `gatefx.export` writes."""

ONNXRUNTIME, TENSORRT = "onnxruntime", "tensorrt"
"""The field `backend` of it."""

BUILT_LATER = "built_later"
"""A free field: names of files that may appear in the folder after it was written."""

_WRITTEN = ("schema_version", "versions", "files", SEAL)
_VERSIONED = ("gatefx", "torch", "onnx", "onnxruntime", "transformers")
_SHA256_LENGTH = 64


def seal(description: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]]) -> str:
    """The text of `gatefx.json`.

    Args:
        description: the fields `DESCRIBED` and any others, JSON values only.
        files: name → {"sha256": hex, "bytes": size} of every other file in the folder.

    Raises:
        ArtifactError: a field is missing, reserved, or not JSON.
    """
    missing = [name for name in DESCRIBED if name not in description]
    reserved = [name for name in _WRITTEN if name in description]
    if missing or reserved:
        raise ArtifactError(
            "The description of the artifact is not complete." if missing else "The description uses reserved fields.",
            given=", ".join(description),
            expected=f"the fields {', '.join(DESCRIBED)}, and none of {', '.join(_WRITTEN)}",
        )
    content = {**description, "schema_version": SCHEMA_VERSION, "versions": _versions(), "files": dict(files)}
    # As a reader will see it: keys are strings, tuples are lists.
    content = json.loads(_canonical(content))
    return json.dumps({**content, SEAL: _digest(content)}, indent=2, ensure_ascii=False) + "\n"


def unseal(path: Path) -> dict[str, Any]:
    """The fields of the `gatefx.json` at `path`, without its seal.

    Raises:
        ArtifactError: no such file, no JSON, edited, of a newer schema, or naming files outside its folder.
    """
    content = _read(path)
    version = content.get("schema_version")
    if not isinstance(version, int) or isinstance(version, bool) or version > SCHEMA_VERSION:
        raise ArtifactError(
            f"{path} has a format that this version of gatefx does not read.",
            given=f"schema_version {version!r}",
            expected=f"a schema_version up to {SCHEMA_VERSION}",
            remedy="Use the version of gatefx that wrote it, or export the model again.",
        )
    sealed = content.pop(SEAL, None)
    found = _digest(content)
    if sealed != found:
        raise ArtifactError(
            f"{path} was edited after it was written.",
            given=f"sha256 {found}",
            expected=f"sha256 {sealed}",
            remedy="Fetch the folder again, or export the model again.",
        )
    _check_fields(path, content)
    return content


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(
            f"{path.parent} is not a gatefx artifact: it has no {path.name}.",
            expected="a folder that gatefx.export wrote",
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(
            f"{path} cannot be read as JSON.", given=str(error), remedy="Fetch the folder again, or export again."
        ) from error
    if not isinstance(content, dict):
        raise ArtifactError(f"{path} is not a manifest.", given=type(content).__name__, expected="a JSON object")
    return content


def _check_fields(path: Path, content: Mapping[str, Any]) -> None:
    files = content.get("files")
    missing = [name for name in DESCRIBED if name not in content]
    if missing or not isinstance(files, dict):
        raise ArtifactError(
            f"{path} lacks fields.",
            given=", ".join(content),
            expected=", ".join([*DESCRIBED, "files"]),
        )
    for name, entry in files.items():
        if not is_inside(name):
            raise ArtifactError(
                f"{path} names a file outside its folder; nothing was opened.",
                given=repr(name),
                expected="names relative to the folder, without '..'",
            )
        sha256, size = (entry.get("sha256"), entry.get("bytes")) if isinstance(entry, dict) else (None, None)
        if not isinstance(sha256, str) or len(sha256) != _SHA256_LENGTH or not isinstance(size, int):
            raise ArtifactError(
                f"{path} has no hash and size for {name!r}.", given=repr(entry), expected="sha256 (hex) and bytes"
            )


def is_inside(name: str) -> bool:
    """Whether the relative name `name` stays inside the folder it is relative to, on every operating system."""
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    rooted = posix.is_absolute() or bool(windows.drive) or bool(windows.root)
    plain = bool(posix.parts) and "\\" not in name and "\0" not in name and posix.as_posix() == name
    return plain and not rooted and ".." not in posix.parts and name != MANIFEST_FILE


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical(content)).hexdigest()


def _canonical(content: Mapping[str, Any]) -> bytes:
    try:
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return text.encode("utf-8")
    except (TypeError, ValueError) as error:
        raise ArtifactError(
            "The artifact's description cannot be written as JSON.",
            given=str(error),
            expected="strings, finite numbers, true, false, null, lists, and objects with string keys",
        ) from error


def _versions() -> dict[str, str | None]:
    return {name: _version(name) for name in _VERSIONED}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
