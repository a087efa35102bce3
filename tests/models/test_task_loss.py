"""The loss of a captured model is the loss of the model it came from."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gatefx.errors import InputError
from gatefx.models.task_loss import NoLoss, TransformersLoss, model_config, task_loss_of
from gatefx.models.tiny import FAMILIES, tiny, tiny_inputs

transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_s_loss_is_its_own(family: str) -> None:
    model = tiny(family, num_labels=3)
    inputs = tiny_inputs(model, batch=4, tokens=6)
    labels = torch.tensor([0, 2, 1, 1])
    if family in ("t5", "bart"):
        labels = torch.randint(5, 100, inputs["decoder_input_ids"].shape)
        labels[0, -1] = -100
    loss = task_loss_of(model)

    with torch.no_grad():
        wanted, outputs = model(**inputs, labels=labels).loss, model(**inputs)
    torch.testing.assert_close(loss({"logits": outputs.logits}, {"labels": labels}), wanted)


@pytest.mark.parametrize(
    ("kind", "shape", "labels"),
    [
        ("AutoModelForTokenClassification", (4, 6), ("labels",)),
        ("AutoModelForMaskedLM", (4, 6), ("labels",)),
        ("AutoModelForQuestionAnswering", (4,), ("start_positions", "end_positions")),
    ],
)
def test_other_heads_of_an_encoder(kind: str, shape: tuple[int, ...], labels: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    classes = 2 if "Question" in kind else 3
    model = getattr(transformers, kind).from_config(tiny("bert", num_labels=classes).config).eval()
    given = {name: torch.randint(0, 3, shape) for name in labels}
    inputs = tiny_inputs("bert", batch=4, tokens=6)

    with torch.no_grad():
        wanted, outputs = model(**inputs, **given).loss, model(**inputs)
    torch.testing.assert_close(task_loss_of(model)(dict(outputs), given), wanted)


def test_a_causal_model_s_labels_are_shifted() -> None:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(tiny("gpt2").config).eval()
    inputs = tiny_inputs("gpt2", batch=3, tokens=6)
    labels = inputs["input_ids"]

    with torch.no_grad():
        wanted, outputs = model(**inputs, labels=labels).loss, model(**inputs)
    torch.testing.assert_close(task_loss_of(model)({"logits": outputs.logits}, {"labels": labels}), wanted)


def test_the_model_s_config_is_not_written_to() -> None:
    model = tiny("bert", num_labels=3)
    loss = task_loss_of(model)

    loss({"logits": torch.zeros(2, 3)}, {"labels": torch.tensor([0, 1])})

    assert isinstance(loss, TransformersLoss)
    assert model.config.problem_type is None


def test_a_peft_model_has_the_loss_of_its_base() -> None:
    peft = pytest.importorskip("peft")
    model = tiny("bert")
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=["query"]))

    assert isinstance(task_loss_of(wrapped), TransformersLoss)
    assert model_config(wrapped) is model.config


def test_a_plain_module_has_none_and_says_what_to_do() -> None:
    loss = task_loss_of(nn.Linear(2, 2))

    assert isinstance(loss, NoLoss)
    assert model_config(nn.Linear(2, 2)) is None
    with pytest.raises(InputError, match=r"Linear came without a loss(.|\n)*given: labels(.|\n)*loss=function"):
        loss({}, {"labels": torch.zeros(2)})


def test_labels_of_another_task_are_named() -> None:
    with pytest.raises(InputError, match=r"misses labels(.|\n)*given: start_positions"):
        task_loss_of(tiny("bert"))({"logits": torch.zeros(2, 2)}, {"start_positions": torch.zeros(2)})
