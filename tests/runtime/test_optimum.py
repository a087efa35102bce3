"""Exported folders in Optimum, whose transformers is older than gatefx's: another interpreter opens them.

`GATEFX_OPTIMUM_PYTHON` names it; `make optimum-checks` makes one.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    PreTrainedModel,
)

import gatefx
from gatefx.errors import GatefxError
from gatefx.models.tiny import tiny, tiny_decoder, tiny_inputs

PYTHON = os.environ.get("GATEFX_OPTIMUM_PYTHON", "")
READER = Path(__file__).with_name("optimum_reader.py")
RANKS: tuple[Any, float] = (gatefx.methods.CCM(rank=8), 3)
TOKENS: tuple[Any, float] = (gatefx.methods.MaskLoRA(rank=8, keep={1: 0.5}, floor=0.0), 0.5)
CASES: list[tuple[type[PreTrainedModel], tuple[Any, float], list[str]]] = [
    (BertForSequenceClassification, RANKS, ["logits"]),
    (BertForTokenClassification, TOKENS, ["logits"]),
    (BertForQuestionAnswering, TOKENS, ["end_logits", "start_logits"]),
]

pytestmark = pytest.mark.skipif(
    not PYTHON, reason="no interpreter with optimum-onnx is named: make optimum-checks, or set GATEFX_OPTIMUM_PYTHON"
)


def exported(task: type[PreTrainedModel], method: tuple[Any, float], folder: Path) -> Path:
    """A small BERT for `task`, gated, hardened and written."""
    config, budget = method
    model = task(tiny("bert").config).eval()
    data = [tiny_inputs("bert", batch=4, tokens=12, seed=seed) for seed in range(2)]
    gated = gatefx.prepare(model, config, budget=budget, example_inputs=data[0]).eval()
    return gatefx.export(gatefx.optimize(gated, data=data, progress=False), folder)


def read(folder: Path, given: dict[str, np.ndarray], scratch: Path) -> dict[str, np.ndarray]:
    """What Optimum answers for `folder`, by name."""
    np.savez(scratch / "inputs.npz", **given)
    call = [PYTHON, str(READER), str(folder), str(scratch / "inputs.npz"), str(scratch / "answers.npz")]
    # Not this process's path: it would show that interpreter the packages of this one.
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(call, capture_output=True, text=True, env=alone, check=False)
    assert done.returncode == 0, done.stderr
    return dict(np.load(scratch / "answers.npz"))


@pytest.mark.parametrize(("task", "method", "outputs"), CASES)
def test_optimum_answers_as_the_session_does(
    task: type[PreTrainedModel], method: tuple[Any, float], outputs: list[str], tmp_path: Path
) -> None:
    folder = exported(task, method, tmp_path / "out")
    batch = tiny_inputs("bert", batch=3, tokens=17, seed=5)
    given = {name: batch[name].numpy() for name in ("input_ids", "attention_mask")}
    answers = read(folder, given, tmp_path)
    assert sorted(answers) == outputs
    for name, value in gatefx.load(folder)(**given).items():
        np.testing.assert_allclose(answers[name], value, rtol=0, atol=1e-5)


def test_optimum_generates_the_same_tokens_without_a_cache(tmp_path: Path) -> None:
    data = [tiny_inputs("llama", batch=4, tokens=12, seed=seed) for seed in range(2)]
    gated = gatefx.prepare(tiny_decoder("llama"), gatefx.methods.CCM(rank=4), budget=4, example_inputs=data[0]).eval()
    for name, parameter in gated.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.2)
    fast = gatefx.optimize(gated, data=data, fold=True, progress=False)
    folder = gatefx.export(fast, tmp_path / "out")
    prompt = tiny_inputs("llama", batch=1, tokens=7, seed=9)["input_ids"]
    tokens = prompt
    for _ in range(8):
        logits = fast(input_ids=tokens, attention_mask=torch.ones_like(tokens))["logits"]
        tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], 1)
    given = {"input_ids": prompt.numpy(), "attention_mask": np.ones((1, 7), dtype=np.int64)}
    np.testing.assert_array_equal(read(folder, given, tmp_path)["tokens"], tokens.numpy())


def test_optimum_generates_the_same_tokens_with_its_cache(tmp_path: Path) -> None:
    data = [tiny_inputs("llama", batch=4, tokens=12, seed=seed) for seed in range(2)]
    method = gatefx.methods.TSPEFT(rank=4)
    gated = gatefx.prepare(tiny_decoder("llama"), method, budget=0.5, example_inputs=data[0]).eval()
    for name, parameter in gated.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.2)
    fast = gatefx.optimize(gated, data=data, progress=False)
    folder = gatefx.export(fast, tmp_path / "out", generate="optimum")
    ids = torch.tensor([[5, 6, 7, 8, 9], [1, 1, 3, 4, 11]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    tokens = gatefx.generate(fast, ids, mask, max_new_tokens=8, stop=()).tokens
    found = read(folder, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}, tmp_path)
    np.testing.assert_array_equal(found["tokens"][:, 5:], torch.as_tensor(tokens).numpy())
    with pytest.raises(GatefxError, match="ORTModelForCausalLM"):
        gatefx.load(folder)
