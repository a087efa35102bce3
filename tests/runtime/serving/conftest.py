"""What the tests of serving share: one folder with budgets that change, its session, and ragged requests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peft import LoraConfig, get_peft_model

import gatefx
from gatefx.models.tiny import tiny, tiny_inputs


@pytest.fixture(scope="session")
def served_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of ccm on a small BERT."""
    model = get_peft_model(tiny("bert"), LoraConfig(r=4, target_modules=["query", "value"], init_lora_weights=False))
    data = [tiny_inputs("bert", batch=4, tokens=24, seed=seed) for seed in range(2)]
    fast = gatefx.optimize(model.eval(), "ccm", 2, data=data, distill_steps=5, progress=False)
    return gatefx.export(fast, tmp_path_factory.mktemp("served") / "out")


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


@pytest.fixture(scope="module")
def cluster() -> Iterator[int]:
    """Ray and its Serve on this machine, and the port of its HTTP door."""
    import ray
    from ray import serve

    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}  # leaves no token in the home folder
    ray.init(include_dashboard=False, num_cpus=4, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    yield PORT
    serve.shutdown()
    ray.shutdown()


PORT = 8731
