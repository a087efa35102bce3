"""Programs that compile kernels ahead of time: each in a process of its own, for Triton's interpreter excludes that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any


def rows_said_by(program: str, *arguments: str) -> list[dict[str, Any]]:
    """What a Python program says, a JSON object a line."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]
