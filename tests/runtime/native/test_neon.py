"""The kernels for aarch64, compiled where a cross-compiler is at hand (aarch64-linux-gnu-g++, or ziglang)."""

from __future__ import annotations

import importlib.util
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from gatefx.runtime.native.places import SOURCES

GNU = "aarch64-linux-gnu-g++"
AARCH64 = 183
"""The machine in an ELF header."""


def cross_compiler() -> list[str]:
    if shutil.which(GNU) is not None:
        return [GNU]
    if importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "c++", "-target", "aarch64-linux-gnu"]
    return []


@pytest.mark.slow
@pytest.mark.skipif(not cross_compiler(), reason="no compiler for aarch64 is here (pip install ziglang)")
@pytest.mark.parametrize("source", ["kernels/neon.cpp", "kernels/dispatch.cpp", "onnxruntime_binding/register.cpp"])
def test_sources_compile_for_aarch64(source: str, tmp_path: Path) -> None:
    made = tmp_path / "made.o"
    options = ["-std=c++17", "-O2", "-fPIC", "-fno-exceptions", "-fno-rtti", "-ffp-contract=fast", "-fno-math-errno"]
    warnings = ["-Wall", "-Wextra", "-Wno-psabi", "-Werror"]
    command = [*cross_compiler(), *options, *warnings, "-DGATEFX_NEON", "-DGATEFX_ABI_VERSION=0"]
    done = subprocess.run(
        [*command, "-c", str(SOURCES / source), "-o", str(made)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    header = made.read_bytes()[:20]
    assert header[:4] == b"\x7fELF"
    assert struct.unpack("<H", header[18:20]) == (AARCH64,)
