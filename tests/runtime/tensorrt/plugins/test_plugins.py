"""The plugins on TensorRT's real registry, and the very kernels they launch, interpreted: `plugin_cases.py`.

Plugins stay registered and kernels are interpreted or compiled for a whole process, so the cases have one of their own.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("plugin_cases.py")


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_lean") is None or importlib.util.find_spec("triton") is None,
    reason="tensorrt-lean and triton are not both installed here: no plugin is registered, no kernel interpreted "
    "(pip install 'gatefx[tensorrt,triton]')",
)
def test_plugins_register_launch_and_mean_what_their_references_mean() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(CASES)]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTEST_ADDOPTS": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
