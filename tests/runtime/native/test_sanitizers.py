from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from gatefx.runtime.native.build import BuildOptions, build_native

SEEDS = "50"


@pytest.mark.slow
def test_random_shapes_are_clean_under_sanitizers(tmp_path: Path) -> None:
    missing = [name for name in ("cmake", "c++") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"no native kernels without {' and '.join(missing)}")
    options = BuildOptions(runtimes=False, sanitize="address,undefined", checks=True)
    (program,) = build_native(tmp_path, options)
    done = subprocess.run([program, SEEDS], capture_output=True, text=True, check=False, env=dict(os.environ))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "baseline: 50 seeds" in done.stdout
