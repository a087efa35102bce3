"""setuptools' build backend, and wheels that bring the native kernels where they are asked for.

    pip wheel . --no-deps                    Python alone: any machine; `gatefx build-native` compiles the kernels there
    pip wheel . --no-deps -C native=true     for this kind of machine: CMake compiles the kernels now, into the wheel

The libraries use no interface of Python's, and of torch only the stable one, so one wheel serves every Python. A wheel
of Python alone is made first and compiles its own kernels: there is one way to build them.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from pathlib import Path

from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    build_sdist,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

_NATIVE = ["wheel>=0.45", "cmake>=3.21", "ninja>=1.11", "torch==2.13.0"]
"""What a wheel with kernels is built with; torch is the oldest one that they serve."""

_BUILD = """
import pathlib, sys
from gatefx.runtime.native import build, places
files = build.build_native(places.PACKAGED)
missing = set(places.FILES.values()) - {file.name for file in files}
sys.exit(f"not built: {', '.join(sorted(missing))}; is torch installed?" if missing else 0)
"""

Settings = Mapping[str, str | list[str] | None] | None


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    """What pip installs before it builds."""
    native, rest = _split(config_settings)
    return [*build_meta.get_requires_for_build_wheel(rest), *(_NATIVE if native else [])]


def build_wheel(wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None) -> str:
    """Build a wheel into `wheel_directory`; its name.

    Raises:
        ValueError: a setting that is neither true nor false.
        subprocess.CalledProcessError: the kernels cannot be compiled; the compiler's words are printed.
    """
    native, rest = _split(config_settings)
    if not native:
        return str(build_meta.build_wheel(wheel_directory, rest, metadata_directory))
    with tempfile.TemporaryDirectory() as scratch:
        pure = Path(scratch) / build_meta.build_wheel(scratch, rest, metadata_directory)
        return _with_kernels(pure, Path(wheel_directory)).name


def _split(settings: Settings) -> tuple[bool, dict[str, str | list[str] | None]]:
    """Whether kernels are asked for, and the settings that setuptools reads."""
    rest = dict(settings or {})
    asked = rest.pop("native", "false")
    if asked not in ("true", "false"):
        raise ValueError(f"native={asked!r}: expected -C native=true or -C native=false")
    return asked == "true", rest


def _with_kernels(pure: Path, target: Path) -> Path:
    """The wheel with what it compiles itself, for this platform."""
    unpacked = pure.parent / "unpacked"
    _run("-m", "wheel", "unpack", str(pure), "--dest", str(unpacked))
    (root,) = unpacked.iterdir()
    subprocess.run([sys.executable, "-c", _BUILD], cwd=root, check=True)
    for cached in root.rglob("__pycache__"):
        shutil.rmtree(cached)
    (about,) = root.glob("*.dist-info/WHEEL")
    about.write_text(about.read_text().replace("Root-Is-Purelib: true", "Root-Is-Purelib: false"))
    packed = pure.parent / "packed"
    packed.mkdir()
    _run("-m", "wheel", "pack", str(root), "--dest-dir", str(packed))
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    _run("-m", "wheel", "tags", "--platform-tag", platform, "--remove", *map(str, packed.iterdir()))
    (made,) = packed.iterdir()
    return Path(shutil.move(made, target / made.name))


def _run(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], check=True, stdout=sys.stderr)
