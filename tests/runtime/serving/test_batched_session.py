"""Requests batched on a real session get the answers that the session gives each of them alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peft import LoraConfig, get_peft_model

import gatefx
from gatefx.models.tiny import tiny, tiny_inputs
from gatefx.runtime.serving.batching import Request, groups, padded, scattered


@pytest.fixture(scope="module")
def session(tmp_path_factory: Any) -> Any:
    """Of ccm on a small BERT, with budgets that change at run time."""
    model = get_peft_model(tiny("bert"), LoraConfig(r=4, target_modules=["query", "value"], init_lora_weights=False))
    data = [tiny_inputs("bert", batch=4, tokens=24, seed=seed) for seed in range(2)]
    fast = gatefx.optimize(model.eval(), "ccm", 2, data=data, distill_steps=5, progress=False)
    folder: Path = gatefx.export(fast, tmp_path_factory.mktemp("served") / "out")
    return gatefx.load(folder, threads=1)


def test_batches_answer_as_the_session_does_alone(session: Any) -> None:
    random = np.random.default_rng(3)
    names = [spec.name for spec in session.inputs]
    requests = []
    for _ in range(60):
        length = int(random.integers(4, 30))
        whole = tiny_inputs("bert", batch=2, tokens=length, seed=length)
        arrays = {name: np.asarray(whole[name][:1]) for name in names}
        arrays["attention_mask"] = np.ones_like(arrays["attention_mask"])
        requests.append(Request(arrays, float(random.choice([1, 2, 3]))))
    parts = groups(requests, width=8, most=8)
    assert len(parts) < len(requests)
    for group in parts:
        batch = [requests[index] for index in group]
        found = session.run(padded(batch), budget=batch[0].budget)
        for request, answer in zip(batch, scattered(found, batch, session.outputs, "sequence"), strict=True):
            alone = session.run(request.arrays, budget=request.budget)
            for name, expected in alone.items():
                np.testing.assert_allclose(answer[name], expected, atol=1e-5, rtol=0)
