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
from transformers import (
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    PreTrainedModel,
)

import gatefx
from gatefx.models.tiny import tiny, tiny_inputs

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


@pytest.mark.parametrize(("task", "method", "outputs"), CASES)
def test_optimum_answers_as_the_session_does(
    task: type[PreTrainedModel], method: tuple[Any, float], outputs: list[str], tmp_path: Path
) -> None:
    folder = exported(task, method, tmp_path / "out")
    batch = tiny_inputs("bert", batch=3, tokens=17, seed=5)
    given = {name: batch[name].numpy() for name in ("input_ids", "attention_mask")}
    np.savez(tmp_path / "inputs.npz", **given)
    call = [PYTHON, str(READER), str(folder), str(tmp_path / "inputs.npz"), str(tmp_path / "answers.npz")]
    # Not this process's path: it would show that interpreter the packages of this one.
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(call, capture_output=True, text=True, env=alone, check=False)
    assert done.returncode == 0, done.stderr
    answers = np.load(tmp_path / "answers.npz")
    assert sorted(answers.files) == outputs
    for name, value in gatefx.load(folder)(**given).items():
        np.testing.assert_allclose(answers[name], value, rtol=0, atol=1e-5)
