"""The Triton kernels mean what their references mean: interpreted here, launched where there is a CUDA device.

Interpretation is chosen when a kernel is defined, so each way runs `triton_cases.py` in a process of its own.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

CASES = Path(__file__).with_name("triton_cases.py")
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="triton is not installed here: no kernel is interpreted (pip install 'gatefx[triton]')",
)


def run_cases(*, interpreted: bool) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(CASES)]
    done = subprocess.run(
        command,
        env={**os.environ, "TRITON_INTERPRET": "1" if interpreted else "0", "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]


@needs_triton
def test_interpreted_kernels_agree_with_their_references() -> None:
    run_cases(interpreted=True)


@needs_triton
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here: no kernel is launched")
def test_launched_kernels_agree_with_their_references() -> None:
    run_cases(interpreted=False)
