"""What the tests of serving share: one folder with budgets that change, its session, and ragged requests."""

from __future__ import annotations

import gc
import json
import os
import socket
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

import gatefx
from gatefx.methods import CCM
from gatefx.models.configs.masklora import MaskLoRA
from gatefx.models.tiny import tiny, tiny_inputs

# Of every Ray that these tests start, and of what they start: no token in the home folder, nothing sent home, and
# replicas that get as much of a busy machine as the tests that wait for them.
os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}


def exported(method: Any, budget: int | None, out: Path, *, forms: Any) -> Path:
    torch.manual_seed(0)
    model = get_peft_model(tiny("bert"), LoraConfig(r=4, target_modules=["query", "value"], init_lora_weights=False))
    data = [tiny_inputs("bert", batch=4, tokens=24, seed=seed) for seed in range(2)]
    fast = gatefx.optimize(model.eval(), method, budget, data=data, forms=forms, distill_steps=5, progress=False)
    return gatefx.export(fast, out)


@pytest.fixture(scope="session")
def served_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of ccm on a small BERT."""
    return exported("ccm", 2, tmp_path_factory.mktemp("served") / "out", forms="gathered")


@pytest.fixture(scope="session")
def pruned_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of masklora on a small BERT: half of the tokens after its first layer."""
    method = MaskLoRA(keep=((1, 0.5),), floor=0.0)
    return exported(method, None, tmp_path_factory.mktemp("pruned") / "out", forms=None)


@pytest.fixture(scope="session")
def plain_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a small BERT whose adapter decides nothing, with two others of other ranks that requests may name."""
    root, models = tmp_path_factory.mktemp("plain"), {}
    for name, rank in (("own", 4), ("higher", 7), ("lower", 2)):
        torch.manual_seed(rank)
        config = LoraConfig(r=rank, target_modules=["query"], task_type="SEQ_CLS", init_lora_weights=False)
        models[name] = get_peft_model(tiny("bert"), config).eval()
        models[name].save_pretrained(root / name)
    data = [tiny_inputs("bert", batch=4, tokens=9)]
    fast = gatefx.optimize(models["own"], CCM(rank=4), "100%", data=data, fold=False, progress=False)
    return gatefx.export(fast, root / "out", adapters={name: root / name for name in ("higher", "lower")})


@pytest.fixture(scope="session")
def session(served_folder: Path) -> Any:
    return gatefx.load(served_folder, threads=1)


@pytest.fixture(scope="session")
def text() -> Callable[[int], dict[str, np.ndarray]]:
    """seed → one text of 4 to 29 tokens, (1, T) each input."""

    def make(seed: int) -> dict[str, np.ndarray]:
        random = np.random.default_rng(seed)
        ids = random.integers(5, 99, (1, random.integers(4, 30)))
        return {"input_ids": ids, "attention_mask": np.ones_like(ids)}

    return make


@pytest.fixture(scope="session")
def ask() -> Callable[..., tuple[int, Any]]:
    """(address, body or None) → (HTTP status, what the JSON of the answer holds)."""

    def send(address: str, body: Any = None) -> tuple[int, Any]:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(urllib.request.Request(address, data), timeout=120) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    return send


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Ray and its Serve on this machine: the address of the HTTP door."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own, of its use of pydantic, while it is imported
        import ray
        from ray import serve

        from gatefx.runtime.serving.ray_cluster import start_ray

        start_ray(cpus=6)
        gc.collect()  # a node that came up too late is forgotten while it runs, which Python warns about
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()
    ray.shutdown()


@pytest.fixture(scope="session")
def metric() -> Callable[..., float]:
    """(name, address of a node's metrics, None for this machine's) → the sum over its processes.

    Read at Ray's Prometheus endpoint once it is above zero, else 0 after a minute.
    """

    def read(name: str, address: str | None = None) -> float:
        import ray

        node = ray.nodes()[0] if address is None else {}
        endpoint = address or f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}"
        for _ in range(60):
            with urllib.request.urlopen(f"http://{endpoint}/metrics", timeout=30) as answer:
                rows = [row.rpartition(" ") for row in answer.read().decode().splitlines()]
            found = sum(float(value) for key, _, value in rows if name in key and not key.startswith("#"))
            if found:
                return found
            time.sleep(1)
        return 0.0

    return read
