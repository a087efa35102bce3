"""`gatefx serve` answers over HTTP, and what is in flight when it is told to stop."""

from __future__ import annotations

import importlib.util
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="ray is not installed here: nothing is served (pip install 'gatefx[serve]', or make serve-checks)",
)
CLIENTS, WINDOW_MS = 6, 3000
COMMAND = (sys.executable, "-c", "from gatefx.tools.cli import main; main()", "serve")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_a_server_that_is_told_to_stop_answers_what_it_has(
    served_folder: Path,
    session: Any,
    text: Callable[[int], dict[str, np.ndarray]],
    ask: Callable[..., tuple[int, Any]],
    tolerance: Any,
) -> None:
    port = free_port()
    options = ["--port", str(port), "--wait-ms", str(WINDOW_MS), "--max-batch", "64"]
    server = subprocess.Popen([*COMMAND, str(served_folder), *options], stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        lines = iter(server.stderr.readline, "")
        assert any(f"serving http://127.0.0.1:{port}" in line for line in lines)
        bodies = [{"inputs": {name: array[0].tolist() for name, array in text(n).items()}} for n in range(CLIENTS)]
        with ThreadPoolExecutor(CLIENTS) as pool:
            running = [pool.submit(ask, f"http://127.0.0.1:{port}", body) for body in bodies]
            time.sleep(WINDOW_MS / 3000)
            assert not any(future.done() for future in running)
            server.send_signal(signal.SIGTERM)
            answers = [future.result() for future in running]
        assert "what was in flight is answered" in "".join(lines)
        assert server.wait(60) == 0
    finally:
        server.kill()
        server.wait()
        server.stderr.close()
    for seed, (status, body) in enumerate(answers):
        assert status == 200, body
        expected = session.run(text(seed))["logits"]
        np.testing.assert_allclose(body["outputs"]["logits"], expected, atol=tolerance[torch.float32], rtol=0)


def test_what_cannot_be_served_is_refused_before_ray_starts(served_folder: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for arguments, said in [
            ((served_folder, "--port", port), "cannot open"),
            ((tmp_path,), "not a gatefx artifact"),
        ]:
            done = subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False)
            assert done.returncode == 2
            assert said in done.stderr
