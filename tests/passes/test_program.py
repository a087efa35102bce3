"""A program answers like the model it came from: names in, named tensors out, loss where labels are given."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

import gatefx
from gatefx.errors import InputError
from gatefx.models.tiny import tiny, tiny_inputs
from gatefx.passes.gated import GatedModel
from gatefx.passes.program import Answer

from ..sampling import rest_slow


@pytest.fixture(scope="module")
def bert() -> Any:
    return tiny("bert", num_labels=3)


@pytest.fixture(scope="module")
def gated(bert: Any) -> GatedModel:
    example = tiny_inputs(bert, batch=3, tokens=6)
    return gatefx.prepare(bert, gatefx.CCM(rank=4, d_router=8), budget=2, example_inputs=example).eval()


def test_an_answer_is_dict_attributes_and_positions() -> None:
    answer = Answer({"loss": torch.tensor(1.0), "logits": torch.zeros(2)})

    assert answer.loss is answer["loss"] is answer[0]
    assert answer.to_tuple() == (answer[0], answer[1])
    assert len(answer[:1]) == 1  # type: ignore[misc]
    with pytest.raises(AttributeError, match="returned loss, logits, no 'hidden_states'"):
        _ = answer.hidden_states


@pytest.mark.parametrize(
    "problem", rest_slow([None, "multi_label_classification", "regression", "single_label_classification"], 2)
)
def test_the_loss_is_the_model_s_own(problem: str | None) -> None:
    model = tiny("bert", num_labels=1 if problem == "regression" else 3)
    model.config.problem_type = problem
    inputs = tiny_inputs(model, batch=4, tokens=6)
    labels = {
        None: torch.tensor([0, 2, 1, 1]),
        "single_label_classification": torch.tensor([0, 2, 1, 1]),
        "regression": torch.randn(4),
        "multi_label_classification": torch.rand(4, 3).round(),
    }[problem]
    made = gatefx.prepare(model, gatefx.CCM(rank=4, d_router=8), budget=2, example_inputs=inputs).eval()

    assert torch.equal(made(**inputs, labels=labels).loss, model(**inputs, labels=labels).loss)
    assert model.config.problem_type == problem or problem is None


def test_a_generator_s_loss_is_its_own() -> None:
    model = tiny("t5")
    inputs = tiny_inputs(model, batch=3, tokens=6)
    labels = torch.randint(5, 100, inputs["decoder_input_ids"].shape)
    made = gatefx.prepare(model, gatefx.CCM(rank=4, d_router=8), budget=2, example_inputs=inputs).eval()

    torch.testing.assert_close(made(**inputs, labels=labels).loss, model(**inputs, labels=labels).loss)


def test_training_mode_adds_the_gates_terms_beside_the_task_s(gated: GatedModel, bert: Any) -> None:
    inputs = tiny_inputs(bert, batch=4, tokens=6)
    labels = torch.tensor([0, 2, 1, 1])
    gated.train()
    answer = gated(**inputs, labels=labels)
    gated.eval()

    assert list(answer) == ["loss", "task_loss", "gate_loss", "logits"]
    torch.testing.assert_close(answer.loss.detach(), answer.task_loss + answer.gate_loss)
    assert not answer.task_loss.requires_grad
    assert list(gated(**inputs, labels=labels)) == ["loss", "logits"]
    assert list(gated(**inputs)) == ["logits"]


def test_the_call_s_signature_names_inputs_and_labels(gated: GatedModel) -> None:
    names = list(inspect.signature(gated.forward).parameters)

    assert names[:3] == ["input_ids", "attention_mask", "labels"]


def test_inputs_may_be_positional(gated: GatedModel, bert: Any) -> None:
    inputs = tiny_inputs(bert, batch=2, tokens=5)

    assert torch.equal(gated(*inputs.values()).logits, gated(**inputs).logits)
    with pytest.raises(InputError, match="takes 2 inputs"):
        gated(*inputs.values(), torch.zeros(2))


def test_unknown_inputs_are_refused_not_dropped(gated: GatedModel, bert: Any) -> None:
    with pytest.raises(InputError, match="has no input output_attentions"):
        gated(**tiny_inputs(bert), output_attentions=True)


def test_a_model_without_a_loss_says_so(plain: Any, inputs: Any) -> None:
    made = gatefx.prepare(plain, gatefx.CCM(rank=4, d_router=8), budget=2, example_inputs=inputs())

    with pytest.raises(InputError, match=r"came without a loss(.|\n)*gate_loss\(\)"):
        made(**inputs(), labels=torch.zeros(3))


def test_a_loss_of_the_user_s_is_called_with_names(plain: Any, inputs: Any) -> None:
    def loss(outputs: Any, labels: Any) -> torch.Tensor:
        return (outputs["logits"].sum(1) - labels["labels"]).square().mean()

    config = gatefx.CCM(rank=4, d_router=8)
    made = gatefx.prepare(plain, config, budget=2, example_inputs=inputs(), loss=loss).eval()

    answer = made(**inputs(), labels=torch.ones(3))
    torch.testing.assert_close(answer.loss, (answer.logits.sum(1) - 1).square().mean())


def test_device_is_where_the_parameters_are(gated: GatedModel) -> None:
    assert gated.device == torch.device("cpu")
