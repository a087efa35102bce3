"""Requests batched on a real session get the answers that the session gives each of them alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gatefx
from gatefx.models.tiny import tiny, tiny_inputs
from gatefx.runtime.serving.answering import answers
from gatefx.runtime.serving.batching import Request
from gatefx.runtime.serving.options import ServeOptions
from gatefx.runtime.serving.served_model import ServedModel, open_session, served_model


def check(session: Any, model: ServedModel, requests: list[Request], most: int, atol: float) -> None:
    found, shares = answers(session, model, requests, width=8, most=most)
    assert (len(shares) < len(requests)) == (most > 1)
    for request, answer in zip(requests, found, strict=True):
        assert isinstance(answer, dict)
        for name, expected in session.run(request.arrays, budget=request.budget, adapter=request.adapter).items():
            assert answer[name].shape == expected.shape
            np.testing.assert_allclose(answer[name], expected, atol=atol, rtol=0)


@pytest.mark.parametrize("most", [1, 8])
def test_batches_answer_as_the_session_does_alone(
    session: Any, served_folder: Path, text: Callable[[int], Any], tolerance: Any, most: int
) -> None:
    """Alone bit for bit; in a batch sums are taken in another order."""
    model = served_model(str(served_folder), session, ServeOptions())
    random = np.random.default_rng(3)
    requests = [model.request(text(seed), float(random.choice([1, 2, 3]))) for seed in range(60)]
    check(session, model, requests, most, 0.0 if most == 1 else tolerance[torch.float32])


def test_adapters_of_one_window_do_not_mix(plain_folder: Path, text: Callable[[int], Any], tolerance: Any) -> None:
    folder = str(plain_folder)
    session = open_session(folder, ServeOptions())
    model = served_model(folder, session, ServeOptions())
    assert model.adapters == ("higher", "lower")
    names = (None, *model.adapters)
    requests = [model.request(text(n // 3), None, names[n % 3]) for n in range(60)]
    check(session, model, requests, 8, tolerance[torch.float32])
    own, higher, lower = (session.run(text(0), adapter=name)["logits"] for name in names)
    assert min(np.abs(own - higher).max(), np.abs(own - lower).max(), np.abs(higher - lower).max()) > 1e-3


def test_heads_that_look_for_padding_find_it(tmp_path: Path, tolerance: Any) -> None:
    """A classifier on a decoder reads the last token that is not the tokenizer's padding."""
    base = tiny("gpt2")
    base.config.pad_token_id = 7
    data = [tiny_inputs("gpt2", batch=4, tokens=20, seed=seed) for seed in range(2)]
    gated = gatefx.prepare(base, "ccm", 2, rank=4, example_inputs=data[0]).eval()
    folder = str(gatefx.export(gatefx.optimize(gated, data=data, distill_steps=2, progress=False), tmp_path / "out"))
    session = open_session(folder, ServeOptions())
    model = served_model(folder, session, ServeOptions())
    assert (model.fill, model.longest) == ({"input_ids": 7}, 128)
    texts = [tiny_inputs("gpt2", batch=1, tokens=5 + seed, seed=seed) for seed in range(12)]
    requests = [model.request({spec.name: given[spec.name].numpy() for spec in session.inputs}) for given in texts]
    check(session, model, requests, 4, tolerance[torch.float32])
    found, _ = answers(session, replace(model, fill={}), requests, width=8, most=4)
    wrong = [
        np.abs(answer["logits"] - session.run(request.arrays)["logits"]).max()
        for request, answer in zip(requests, found, strict=True)
        if isinstance(answer, dict)
    ]
    assert max(wrong) > 0.01
