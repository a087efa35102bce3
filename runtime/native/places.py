"""Where the native libraries lie: a folder of the user's cache, named after the sources that they are built from.

    $GATEFX_NATIVE, else $GATEFX_CACHE/native/<digest>, else $XDG_CACHE_HOME/gatefx/native/<digest>,
    else ~/.cache/gatefx/native/<digest>; where that folder is not there, the package's own, if it came with one

A library of other sources is in another folder, so it is never loaded by mistake.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Literal

SOURCES = Path(__file__).parent
PACKAGED = SOURCES / "libraries"
"""The libraries that a wheel with kernels brings."""
SWITCH = "GATEFX_NATIVE"
"""Environment variable: a folder with the libraries, or "0" to use none."""

Runtime = Literal["onnxruntime", "torch"]

FILES: Mapping[Runtime, str] = MappingProxyType(
    {"onnxruntime": "libgatefx_onnxruntime.so", "torch": "libgatefx_torch.so"}
)


def switched_off() -> bool:
    """Whether the environment asks for no native kernels."""
    return os.environ.get(SWITCH) == "0"


def library_folder() -> Path:
    """Where the libraries of these sources are looked for; the folder may not exist yet."""
    built, own = build_folder(), os.environ.get(SWITCH)
    return PACKAGED if own in (None, "", "0") and not built.is_dir() and PACKAGED.is_dir() else built


def build_folder() -> Path:
    """Where the libraries of these sources are built to; the folder may not exist yet."""
    if (own := os.environ.get(SWITCH)) and own != "0":
        return Path(own).expanduser().absolute()
    if cached := os.environ.get("GATEFX_CACHE"):
        home = Path(cached).expanduser().absolute()
    else:
        shared = os.environ.get("XDG_CACHE_HOME")
        home = (Path(shared) if shared else Path.home() / ".cache").absolute() / "gatefx"
    return home / "native" / source_digest()


@cache
def source_digest() -> str:
    """Twelve hex digits that change with any C++ file, the build script and the kind of machine."""
    digest = hashlib.sha256(f"{platform.system()} {platform.machine()}".encode())
    for path in sorted(SOURCES.rglob("*")):
        if path.suffix in (".cpp", ".h", ".txt"):
            digest.update(path.relative_to(SOURCES).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]
