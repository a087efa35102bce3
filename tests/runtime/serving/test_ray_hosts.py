"""One model on two hosts, each with one CPU, its own network and its own door: the answers are the session's.

The hosts are network namespaces of this machine behind a bridge, which only root may make.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

REQUESTS, CLIENTS, PORT, METRICS_PORT = 200, 8, 8000, 9100
NETWORK, BRIDGE = "10.211.77", "gatefx0"
HOSTS = (1, 2)
TRIES = 3

Ask = Callable[..., tuple[int, Any]]
Text = Callable[[int], dict[str, np.ndarray]]


def missing() -> str:
    """Why there are no two hosts here; empty where they can be made."""
    if importlib.util.find_spec("ray") is None:
        return "ray is not installed here: no two hosts serve (pip install 'gatefx[serve]', or make serve-checks)"
    if shutil.which("ip") is None:
        return "the command `ip` is not installed here: no two hosts serve"
    if os.geteuid() != 0:
        return "only root makes network namespaces: no two hosts serve"
    return ""


pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing())]


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)


def on(host: int, *command: str) -> list[str]:
    """The command as it runs on a host."""
    return ["ip", "netns", "exec", f"gatefx{host}", *command]


@contextmanager
def networks() -> Iterator[None]:
    """Two hosts, and this process as a third beside them."""
    try:
        try:
            run("ip", "link", "add", BRIDGE, "type", "bridge")
            run("ip", "addr", "add", f"{NETWORK}.254/24", "dev", BRIDGE)
            run("ip", "link", "set", BRIDGE, "up")
            for host in HOSTS:
                run("ip", "netns", "add", f"gatefx{host}")
                run(
                    "ip",
                    "link",
                    "add",
                    f"gatefx{host}v",
                    "type",
                    "veth",
                    "peer",
                    "name",
                    "e0",
                    "netns",
                    f"gatefx{host}",
                )
                run("ip", "link", "set", f"gatefx{host}v", "master", BRIDGE, "up")
                run(*on(host, "ip", "link", "set", "lo", "up"))
                run(*on(host, "ip", "addr", "add", f"{NETWORK}.{host}/24", "dev", "e0"))
                run(*on(host, "ip", "link", "set", "e0", "up"))
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here, so no two hosts serve: {error.stderr.strip()}")
        yield
    finally:
        for host in HOSTS:
            subprocess.run(["ip", "netns", "del", f"gatefx{host}"], capture_output=True, check=False)
        subprocess.run(["ip", "link", "del", BRIDGE], capture_output=True, check=False)


def stopped(process: subprocess.Popen[str], seconds: float = 60) -> int:
    """Told to stop; its exit code."""
    process.send_signal(signal.SIGTERM)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    finally:
        if process.stdout is not None:
            process.stdout.close()


def unsaid(process: subprocess.Popen[str], line: str) -> str:
    """Wait until it says so; empty, or all that it said instead before it ended."""
    assert process.stdout is not None
    heard = []
    for row in process.stdout:
        heard.append(row)
        if line in row:
            return ""
    return "".join(heard) or "nothing"


def started(host: int, *command: str, joins: bool = False) -> subprocess.Popen[str]:
    cluster = {"RAY_ADDRESS": f"{NETWORK}.1:6379"} if joins else {}
    return subprocess.Popen(
        on(host, *command),
        env={**os.environ, **cluster, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def node(host: int, *options: str) -> subprocess.Popen[str]:
    """Ray on a host, with one CPU. It has 30 seconds to come up, which a busy machine exceeds now and then."""
    ray = str(Path(sys.executable).parent / "ray")
    own = ("--num-cpus=1", f"--metrics-export-port={METRICS_PORT}", f"--node-ip-address={NETWORK}.{host}", "--block")
    for _ in range(TRIES):
        process = started(host, ray, "start", *options, *own)
        problem = unsaid(process, "Ray runtime started")
        if not problem:
            return process
        stopped(process)
    raise AssertionError(problem)


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[subprocess.Popen[str]]]:
    """Both hosts in one cluster."""
    running: list[subprocess.Popen[str]] = []
    with networks(), tempfile.TemporaryDirectory(prefix="gatefx", dir="/tmp", ignore_cleanup_errors=True) as folder:
        try:
            running.append(node(1, "--head", "--port=6379", f"--temp-dir={folder}", "--include-dashboard=false"))
            running.append(node(2, f"--address={NETWORK}.1:6379"))
            yield running
        finally:
            for process in reversed(running):
                stopped(process)


def test_replicas_on_two_hosts_answer_as_the_session_does(
    nodes: list[subprocess.Popen[str]],
    served_folder: Path,
    session: Any,
    text: Text,
    ask: Ask,
    tolerance: Any,
    metric: Callable[..., float],
) -> None:
    command = (sys.executable, "-c", "from gatefx.tools.cli import main; main()", "serve", str(served_folder))
    server = started(1, *command, "--replicas", "2", "--host", "0.0.0.0", "--port", str(PORT), joins=True)
    try:
        problem = unsaid(server, "serving http://0.0.0.0")
        assert not problem, problem

        def client(number: int) -> list[tuple[int, Any]]:
            address = f"http://{NETWORK}.{HOSTS[number % 2]}:{PORT}"
            bodies = [
                {"inputs": {name: array[0].tolist() for name, array in text(seed).items()}}
                for seed in range(number, REQUESTS, CLIENTS)
            ]
            return [ask(address, body) for body in bodies]

        with ThreadPoolExecutor(CLIENTS) as pool:
            answers = list(pool.map(client, range(CLIENTS)))
        ran = [metric("gatefx_padding_share_count", f"{NETWORK}.{host}:{METRICS_PORT}") for host in HOSTS]
    finally:
        code = stopped(server)
    for seed in range(REQUESTS):
        status, body = answers[seed % CLIENTS][seed // CLIENTS]
        assert status == 200, body
        expected = session.run(text(seed))["logits"]
        np.testing.assert_allclose(body["outputs"]["logits"], expected, atol=tolerance[torch.float32], rtol=0)
    print(f"{REQUESTS} requests through two doors; the hosts ran {ran[0]:.0f} and {ran[1]:.0f} batches")
    assert min(ran) > 0
    assert code == 0
    assert all(node.poll() is None for node in nodes)  # the server has gone, the cluster that it joined has not
