from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from gatefx.models.configs.ccm import CCM
from gatefx.models.packaged_text import batches
from gatefx.preparing import prepare
from gatefx.tools.training import train


def test_a_run_records_every_step_and_learns(base_folder: Path, texts: list[str]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    labels = [int("good" in text) for text in texts]
    epochs = [batch for seed in range(6) for batch in batches(tokenizer, texts, labels, batch_size=8, seed=seed)]
    model = AutoModelForSequenceClassification.from_pretrained(base_folder)
    example = {name: tensor for name, tensor in epochs[0].items() if name != "labels"}
    gated = prepare(model, CCM(rank=8), budget=3, example_inputs=example)
    run = train(gated, epochs, learning_rate=1e-2, show=False)
    assert len(run.losses) == len(run.gates) == len(epochs)
    assert sum(run.losses[-5:]) < 0.8 * sum(run.losses[:5])
    assert run.gates[-1].step == len(epochs)
    assert 0 <= run.collapse_rate <= 1
    assert not gated.training


def test_a_model_without_gates_trains_alike(base_folder: Path, texts: list[str]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    model = AutoModelForSequenceClassification.from_pretrained(base_folder)
    frozen = model.bert.requires_grad_(False).state_dict()
    before = {name: tensor.clone() for name, tensor in frozen.items()}
    run = train(model, batches(tokenizer, texts, [0] * len(texts), batch_size=8), show=False)
    assert run.gates == ()
    assert run.losses[-1] < run.losses[0]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.bert.state_dict().items())
    assert run.seconds > 0
