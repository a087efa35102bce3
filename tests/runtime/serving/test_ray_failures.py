"""Replicas that die and servers that stop lose no request."""

from __future__ import annotations

import importlib.util
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gatefx.runtime.serving.options import ServeOptions

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="ray is not installed here: no replica dies (pip install 'gatefx[serve]', or make serve-checks)",
)
CLIENTS, EACH, WINDOW_MS = 8, 25, 500

Ask = Callable[..., tuple[int, Any]]
Text = Callable[[int], dict[str, np.ndarray]]


def replicas() -> list[Any]:
    """Actors of the model's replicas that live."""
    import ray

    named = [entry["name"] for entry in ray.util.list_named_actors(all_namespaces=True)]
    return [ray.get_actor(name, namespace="serve") for name in named if "gatefx#Model" in name]


def one_with_requests() -> Any:
    """An actor of a replica in which requests wait now."""
    import ray

    for _ in range(600):
        for replica in replicas():
            if ray.get(replica.get_num_ongoing_requests.remote()) > 1:
                return replica
        time.sleep(0.05)
    raise AssertionError("no request waits in a replica")


def body_of(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    return {"inputs": {name: array[0].tolist() for name, array in arrays.items()}}


def test_a_replica_that_dies_under_load_loses_no_request(
    cluster: str,
    served_folder: Path,
    session: Any,
    text: Text,
    ask: Ask,
    tolerance: Any,
    metric: Callable[[str], float],
) -> None:
    import ray
    from ray import serve

    from gatefx.runtime.serving.ray_serve import APPLICATION, build_app

    # A window that is never full: requests wait in the replica, so that some are there when it dies.
    options = ServeOptions(replicas=2, max_batch=64, wait_ms=WINDOW_MS)
    serve.run(build_app(served_folder, options), name=APPLICATION)
    busy = threading.Event()

    def client(number: int) -> list[tuple[int, Any]]:
        found = []
        for seed in range(number, EACH * CLIENTS, CLIENTS):
            found.append(ask(cluster, body_of(text(seed))))
            if len(found) > EACH // 4:
                busy.set()
        return found

    with ThreadPoolExecutor(CLIENTS) as pool:
        running = [pool.submit(client, number) for number in range(CLIENTS)]
        assert busy.wait(120)
        ray.kill(one_with_requests())
        answers = [future.result() for future in running]
    again = 0
    for seed in range(EACH * CLIENTS):
        status, body = answers[seed % CLIENTS][seed // CLIENTS]
        if status == 503:
            assert body["retriable"]
            again += 1
            continue
        assert status == 200, body
        expected = session.run(text(seed))["logits"]
        np.testing.assert_allclose(body["outputs"]["logits"], expected, atol=tolerance[torch.float32], rtol=0)
    print(f"{again} of {EACH * CLIENTS} requests were refused as retriable after a replica died")
    assert again < CLIENTS * 3
    assert metric("gatefx_sent_again") > 0  # it did die with requests that waited in it
    serve.delete(APPLICATION)


def test_requests_in_flight_are_answered_when_the_application_is_deleted(
    cluster: str, served_folder: Path, session: Any, text: Text, ask: Ask, tolerance: Any
) -> None:
    from ray import serve

    from gatefx.runtime.serving.ray_serve import APPLICATION, build_app

    wait_ms = 3000
    serve.run(build_app(served_folder, ServeOptions(max_batch=64, wait_ms=wait_ms)), name=APPLICATION)
    with ThreadPoolExecutor(CLIENTS) as pool:
        started = time.monotonic()
        running = [pool.submit(ask, cluster, body_of(text(seed))) for seed in range(CLIENTS)]
        time.sleep(wait_ms / 3000)
        assert not any(future.done() for future in running)
        serve.delete(APPLICATION)
        answers = [future.result() for future in running]
    assert time.monotonic() - started > wait_ms / 1000
    for seed, (status, body) in enumerate(answers):
        assert status == 200, body
        expected = session.run(text(seed))["logits"]
        np.testing.assert_allclose(body["outputs"]["logits"], expected, atol=tolerance[torch.float32], rtol=0)
    assert not replicas()
