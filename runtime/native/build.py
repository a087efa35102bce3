"""Builds the native libraries from the sources that the package ships: only when asked, whole or not at all."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ...errors import GatefxError, MissingDependencyError
from .places import FILES, SOURCES, build_folder

_LAST_LINES = 20


class NativeBuildError(GatefxError):
    """The native libraries could not be built."""


@dataclass(frozen=True)
class BuildOptions:
    """What to build.

    Attributes:
        runtimes: the libraries for ONNX Runtime and torch.
        checks: the program that tries the kernels on random shapes, without any runtime.
        sanitize: sanitizers of the compiler, such as "address,undefined"; for checks only.
    """

    runtimes: bool = True
    checks: bool = False
    sanitize: str = ""


def build_native(folder: Path | None = None, options: BuildOptions | None = None) -> tuple[Path, ...]:
    """Compile the libraries into `folder`, by default the one where gatefx looks for them.

    Returns:
        The files that are now there.

    Raises:
        MissingDependencyError: no cmake, or no C++ compiler.
        NativeBuildError: the compiler's last words.
    """
    target = (folder or build_folder()).absolute()
    cmake = _program("cmake")
    if cmake is None:
        raise MissingDependencyError(
            "Building native kernels needs cmake, which is not installed.",
            expected="cmake on PATH or in this environment",
            remedy="pip install 'gatefx[native]'",
        )
    with tempfile.TemporaryDirectory(prefix="gatefx-native-") as scratch:
        _run([cmake, "-S", str(SOURCES), "-B", scratch, *_definitions(options or BuildOptions())])
        _run([cmake, "--build", scratch, "--parallel", str(os.cpu_count() or 1)])
        target.mkdir(parents=True, exist_ok=True)
        wanted = (*FILES.values(), "gatefx_fuzz")
        return tuple(_moved(Path(scratch) / name, target) for name in wanted if (Path(scratch) / name).is_file())


def _definitions(options: BuildOptions) -> list[str]:
    ninja = _program("ninja")
    found = importlib.util.find_spec("torch") if options.runtimes else None
    torch = Path(found.origin).parent if found is not None and found.origin is not None else ""
    return [
        *(["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []),
        f"-DGATEFX_ONNXRUNTIME={'ON' if options.runtimes else 'OFF'}",
        f"-DGATEFX_TORCH_DIR={torch}",
        f"-DGATEFX_SANITIZE={options.sanitize}",
        f"-DGATEFX_CHECKS={'ON' if options.checks else 'OFF'}",
    ]


def _program(name: str) -> str | None:
    """The path of a program on PATH, or beside this environment's Python, where wheels put theirs."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    output = (done.stdout + done.stderr).strip()
    if "No CMAKE_CXX_COMPILER could be found" in output:
        raise MissingDependencyError(
            "Building native kernels needs a C++ compiler, and cmake found none.",
            expected="g++ 12 or newer, or clang++ 15 or newer, on PATH (or in $CXX)",
            remedy="Install one, for example `apt install g++`, and run this again.",
        )
    raise NativeBuildError(
        "The native kernels could not be built.",
        given="\n".join(output.splitlines()[-_LAST_LINES:]),
        expected="g++ 12 or newer, or clang++ 15 or newer",
    )


def _moved(file: Path, target: Path) -> Path:
    """`file` in the folder `target`, in one step: a process that has the old one loaded keeps it."""
    place = target / file.name
    beside = target / f".{file.name}.{os.getpid()}"
    shutil.copy2(file, beside)
    os.replace(beside, place)
    return place
