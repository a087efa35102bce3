"""A Triton Inference Server runs what `gatefx export triton --ragged` writes.

The server is the one inside NVIDIA's wheel of pytriton: the binary and its python back end, and no other back end.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gatefx.runtime.serving.options import ServeOptions
from gatefx.runtime.serving.triton_repository import Repository, write_repository

REQUESTS, CLIENTS, MODEL = 400, 16, "reviews"
BUDGETS = (None, 1.0, 4.0, 2.5)
PYTHON = ".".join(platform.python_version_tuple()[:2])

Ask = Callable[..., tuple[int, Any]]
Text = Callable[[int], dict[str, np.ndarray]]


def missing() -> str:
    """Why there is no server here; empty where there is one."""
    if importlib.util.find_spec("pytriton") is None:
        return "nvidia-pytriton is not installed here: no Triton server runs (make triton-checks)"
    try:
        ctypes.CDLL(f"libpython{PYTHON}.so.1.0")
    except OSError as error:
        return f"Triton's python back end finds no shared library of Python {PYTHON}: {error}"
    return ""


pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing())]


def environment(libraries: Path) -> dict[str, str]:
    """Triton's embedded Python takes its packages from the venv of the first `python3` on PATH, not from PYTHONPATH."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    path = os.pathsep.join([str(Path(sys.executable).parent), kept["PATH"]])
    return {**kept, "PATH": path, "LD_LIBRARY_PATH": str(libraries), "GATEFX_NATIVE": "0"}


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(opened.getsockname()[1]) for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


def started(server: subprocess.Popen[bytes], address: str, log: Path) -> None:
    """Once the model is ready."""
    for _ in range(240):
        assert server.poll() is None, log.read_text(errors="replace")[-3000:]
        try:
            with urllib.request.urlopen(f"{address}/v2/models/{MODEL}/ready", timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(log.read_text(errors="replace")[-3000:])


@pytest.fixture(scope="module")
def server(served_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its address; it has one model, and is told to stop at the end."""
    found = importlib.util.find_spec("pytriton")
    assert found is not None
    assert found.origin is not None
    package, root = Path(found.origin).parent, tmp_path_factory.mktemp("triton")
    shutil.copytree(package / "tritonserver" / "backends" / "python", root / "backends" / "python")
    stub = package / "tritonserver" / "python_backend_stubs" / PYTHON / "triton_python_backend_stub"
    shutil.copy2(stub, root / "backends" / "python" / stub.name)
    options = ServeOptions(max_batch=8, wait_ms=50)
    write_repository(served_folder, Repository(root / "models", MODEL), options, ragged=True)
    http, grpc = free_ports(2)
    command = [
        str(package / "tritonserver" / "bin" / "tritonserver"),
        f"--model-repository={root / 'models'}",
        f"--backend-directory={root / 'backends'}",
        f"--http-port={http}",
        f"--grpc-port={grpc}",
        "--http-address=127.0.0.1",
        "--grpc-address=127.0.0.1",
        "--allow-metrics=false",
        "--strict-model-config=true",  # nothing is filled in: the configuration says all
    ]
    with (root / "log").open("wb") as log:
        libraries = package.parent / "nvidia_pytriton.libs"
        running = subprocess.Popen(command, env=environment(libraries), stdout=log, stderr=subprocess.STDOUT)
    try:
        started(running, f"http://127.0.0.1:{http}", root / "log")
        yield f"http://127.0.0.1:{http}/v2/models/{MODEL}"
        running.terminate()
        assert running.wait(60) == 0
        said = (root / "log").read_text(errors="replace")
        assert "Traceback" not in said, said[-3000:]
    finally:
        running.kill()
        running.wait()


def body_of(arrays: dict[str, np.ndarray], budget: float | None = None) -> dict[str, Any]:
    """A request of the KServe protocol."""
    inputs = [
        {"name": name, "shape": list(array.shape), "datatype": "INT64", "data": array.ravel().tolist()}
        for name, array in arrays.items()
    ]
    if budget is not None:
        inputs.append({"name": "budget_ccm", "shape": [1, 1], "datatype": "FP64", "data": [budget]})
    return {"inputs": inputs}


def logits(answer: tuple[int, Any]) -> np.ndarray:
    status, body = answer
    assert status == 200, body
    (output,) = body["outputs"]
    return np.asarray(output["data"], dtype=np.float32).reshape(output["shape"])


def counts(server: str) -> tuple[int, int]:
    """(examples answered, batches run) so far."""
    with urllib.request.urlopen(f"{server}/stats", timeout=30) as answer:
        (found,) = json.load(answer)["model_stats"]
    return found["inference_count"], found["execution_count"]


def test_ragged_requests_share_batches_and_are_answered_as_the_session_does(
    server: str, session: Any, text: Text, ask: Ask, tolerance: Any
) -> None:
    examples, batches = counts(server)
    # All clients of a moment have one budget: Triton keeps requests with and without an optional input apart.
    asked = [(text(seed), BUDGETS[seed // CLIENTS % len(BUDGETS)]) for seed in range(REQUESTS)]
    with ThreadPoolExecutor(CLIENTS) as pool:
        found = list(pool.map(lambda pair: ask(f"{server}/infer", body_of(*pair)), asked))
    same = 0
    for (arrays, budget), answer in zip(asked, found, strict=True):
        expected = session.run(arrays, budget=budget)["logits"]
        np.testing.assert_allclose(logits(answer), expected, atol=tolerance[torch.float32], rtol=0)
        same += np.array_equal(logits(answer), expected)
    examples, batches = counts(server)[0] - examples, counts(server)[1] - batches
    print(f"{examples} requests of ragged lengths in {batches} batches of Triton; {same} have the session's bits")
    assert examples == REQUESTS
    assert batches < REQUESTS / 2


def test_requests_of_several_examples_keep_their_rows(
    server: str, session: Any, text: Text, ask: Ask, tolerance: Any
) -> None:
    rows = {name: np.concatenate([array, array[:, ::-1], array]) for name, array in text(1).items()}
    found = logits(ask(f"{server}/infer", body_of(rows)))
    np.testing.assert_allclose(found, session.run(rows)["logits"], atol=tolerance[torch.float32], rtol=0)


def test_an_error_is_its_own_requests(server: str, session: Any, text: Text, ask: Ask, tolerance: Any) -> None:
    unknown = {**text(0), "input_ids": np.full_like(text(0)["input_ids"], 9999)}
    bodies = [body_of(unknown), *(body_of(text(seed)) for seed in range(1, 7)), body_of(text(0), 99.0)]
    with ThreadPoolExecutor(len(bodies)) as pool:
        found = list(pool.map(lambda body: ask(f"{server}/infer", body), bodies))
    for (status, body), said in ((found[0], "could not run the model"), (found[-1], "calibrated")):
        assert status == 500
        assert said in body["error"]
    for seed in range(1, 7):
        expected = session.run(text(seed))["logits"]
        np.testing.assert_allclose(logits(found[seed]), expected, atol=tolerance[torch.float32], rtol=0)
