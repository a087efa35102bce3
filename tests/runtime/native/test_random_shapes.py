from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from gatefx.runtime.native.build import BuildOptions, build_native

SEEDS = "50"


def random_shapes(out: Path, options: BuildOptions) -> str:
    """What the program of checks prints, which exits with 1 at the first wrong answer."""
    missing = [name for name in ("cmake", "c++") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"no native kernels without {' and '.join(missing)}")
    (program,) = build_native(out, options)
    done = subprocess.run([program, SEEDS], capture_output=True, text=True, check=False, env=dict(os.environ))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_random_shapes_are_clean_under_sanitizers(tmp_path: Path) -> None:
    options = BuildOptions(runtimes=False, sanitize="address,undefined", checks=True)
    assert f"baseline: {SEEDS} seeds" in random_shapes(tmp_path, options)


@pytest.mark.slow
def test_tiles_of_avx512_are_right_in_the_instructions_of_any_machine(tmp_path: Path) -> None:
    assert f"avx512_tiles: {SEEDS} seeds" in random_shapes(tmp_path, BuildOptions(runtimes=False, checks=True))
