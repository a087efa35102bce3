from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from gatefx.errors import CaptureError, GatefxError, InputError
from gatefx.passes.lower.onnx import lower_to_onnx, save_onnx
from gatefx.passes.lower.onnx_names import MODULE_KEY
from gatefx.runtime.ops.schema import gated_lora


class Gate(nn.Module):
    """Which of r directions are on: those whose logit, from the mean token, exceeds `threshold`."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.logits = nn.Linear(width, rank)
        self.register_buffer("threshold", torch.tensor(0.0))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, d) → (B, r)."""
        logits = self.logits(x.mean(1))
        order = logits.argsort(-1, descending=True)
        return torch.where(logits.gather(1, order) > self.threshold, order, -1)


class GatedClassifier(nn.Module):
    """Embedding, one gated layer, one attention with a padding mask; the answers of a real encoder in small."""

    def __init__(self, width: int = 8, rank: int = 4, classes: int = 3) -> None:
        super().__init__()
        self.words = nn.Embedding(50, width)
        self.dense = nn.Linear(width, width)
        self.gate = Gate(width, rank)
        self.lora_A = nn.Parameter(torch.randn(rank, width))
        self.lora_B = nn.Parameter(torch.randn(width, rank))
        self.register_buffer("scale", torch.tensor(0.7))
        self.register_buffer("unused", torch.zeros(3))
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(width, classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        x = self.dropout(self.words(input_ids))
        state = gated_lora(self.dense(x), x, self.lora_A, self.lora_B, self.gate(x), self.scale)
        heads = state.unflatten(-1, (2, -1)).transpose(1, 2)
        seen = (attention_mask != 0)[:, None, None, :].expand(-1, -1, state.shape[1], -1)
        mixed = nn.functional.scaled_dot_product_attention(heads, heads, heads, attn_mask=seen)
        pooled = mixed.transpose(1, 2).flatten(2)[:, 0]
        return {"pooled": pooled, "logits": self.head(pooled)}


def batch(examples: int, tokens: int, seed: int = 0) -> dict[str, Tensor]:
    """Token ids and a ragged mask, both (B, T)."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, tokens + 1, (examples, 1), generator=generator)
    return {
        "input_ids": torch.randint(0, 50, (examples, tokens), generator=generator),
        "attention_mask": (torch.arange(tokens) < lengths).long(),
    }


@pytest.fixture(scope="module")
def model() -> GatedClassifier:
    torch.manual_seed(0)
    return GatedClassifier().eval()


@pytest.fixture(scope="module")
def lowered(model: GatedClassifier) -> onnx_ir.Model:
    return lower_to_onnx(model, batch(2, 5), ["logits", "pooled"], overridable=["gate.threshold"])


@pytest.fixture(scope="module")
def folder(lowered: onnx_ir.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lowered")
    save_onnx(lowered, path)
    return path


@pytest.fixture(scope="module")
def session(folder: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])


def answers(session: Any, inputs: Mapping[str, Tensor], **more: np.ndarray) -> dict[str, np.ndarray]:
    names = [spec.name for spec in session.get_outputs()]
    feed = {name: value.numpy() for name, value in inputs.items()}
    return dict(zip(names, session.run(names, {**feed, **more}), strict=True))


def test_every_batch_and_length_answers_like_torch(model: GatedClassifier, session: Any) -> None:
    for examples in (1, 2, 3, 9):
        for tokens in (1, 2, 3, 17, 64):
            inputs = batch(examples, tokens, seed=examples * tokens)
            expected, found = model(**inputs), answers(session, inputs)
            for name, value in expected.items():
                np.testing.assert_allclose(found[name], value.detach().numpy(), rtol=0, atol=1e-5)


def test_a_row_without_any_visible_token_is_what_torch_says(model: GatedClassifier, session: Any) -> None:
    inputs = batch(3, 5)
    inputs["attention_mask"][1] = 0
    expected = model(**inputs)["logits"].detach().numpy()
    found = answers(session, inputs)["logits"]
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_a_replaced_buffer_changes_the_answer_as_it_does_in_torch(model: GatedClassifier, session: Any) -> None:
    inputs = batch(4, 6)
    assert [spec.name for spec in session.get_overridable_initializers()] == ["gate.threshold"]
    assert [spec.name for spec in session.get_inputs()] == ["input_ids", "attention_mask"]
    found = answers(session, inputs, **{"gate.threshold": np.array(9.0, dtype=np.float32)})["logits"]
    with torch.no_grad():
        model.gate.threshold.fill_(9.0)
        expected = model(**inputs)["logits"].numpy()
        model.gate.threshold.fill_(0.0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert np.abs(found - answers(session, inputs)["logits"]).max() > 1e-3


def test_the_file_is_legal_and_carries_the_bodies_it_needs(folder: Path) -> None:
    onnx.checker.check_model(str(folder / "model.onnx"), full_check=True)
    assert sorted(path.name for path in folder.iterdir()) == ["model.onnx", "model.onnx.data"]
    proto = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    assert [(function.domain, function.name) for function in proto.functions] == [("gatefx", "GatedLora")]
    assert {needed.domain: needed.version for needed in proto.opset_import} == {"": 23, "gatefx": 1}


def test_names_and_axes(model: GatedClassifier, lowered: onnx_ir.Model) -> None:
    shapes = {value.name: str(value.shape) for value in (*lowered.graph.inputs, *lowered.graph.outputs)}
    assert shapes == {
        "input_ids": "[batch,sequence]",
        "attention_mask": "[batch,sequence]",
        "gate.threshold": "[]",
        "logits": "[batch,3]",
        "pooled": "[batch,8]",
    }
    assert {name for name, _ in model.named_parameters()} <= set(lowered.graph.initializers)
    assert "unused" not in lowered.graph.initializers


def test_nodes_say_which_module_they_came_from(lowered: onnx_ir.Model) -> None:
    gated = [node for node in lowered.graph if node.op_type == "GatedLora"]
    assert len(gated) == 1
    names = [node.name for node in lowered.graph]
    assert len(set(names)) == len(names)
    modules = {node.metadata_props.get(MODULE_KEY) for node in lowered.graph}
    assert {"words", "dense", "gate", "gate.logits", "head"} <= modules
    notes = [text for node in lowered.graph for text in node.metadata_props.values()]
    assert not any(".py" in text for text in notes)


def test_nothing_of_training_is_left(lowered: onnx_ir.Model) -> None:
    assert not {"Dropout", "Identity"} & {node.op_type for node in lowered.graph}


def test_lowering_is_silent_and_leaves_the_module_alone(
    model: GatedClassifier, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with caplog.at_level(logging.WARNING):
        lower_to_onnx(model, batch(2, 5), ["logits", "pooled"])
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_opset_18_still_answers_like_torch(model: GatedClassifier, tmp_path: Path) -> None:
    save_onnx(lower_to_onnx(model, batch(2, 5), ["logits", "pooled"], opset=18), tmp_path)
    onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=True)
    older = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    inputs = batch(3, 7)
    expected = model(**inputs)["logits"].detach().numpy()
    np.testing.assert_allclose(answers(older, inputs)["logits"], expected, rtol=0, atol=1e-5)


def test_a_batch_of_one_is_no_example(model: GatedClassifier) -> None:
    with pytest.raises(InputError, match="'input_ids' has a batch of 1"):
        lower_to_onnx(model, batch(1, 5), ["logits", "pooled"])


def test_a_graph_in_training_mode_is_refused() -> None:
    with pytest.raises(GatefxError, match="training mode"):
        lower_to_onnx(GatedClassifier().train(), batch(2, 5), ["logits", "pooled"])


def test_outputs_that_the_graph_does_not_have(model: GatedClassifier) -> None:
    with pytest.raises(GatefxError, match="outputs are not those"):
        lower_to_onnx(model, batch(2, 5), ["logits"])


@pytest.mark.parametrize(
    ("name", "text"), [("gate.nothing", "not in the exported graph"), ("unused", "exported graph")]
)
def test_a_buffer_that_cannot_be_replaced(model: GatedClassifier, name: str, text: str) -> None:
    with pytest.raises(GatefxError, match=text):
        lower_to_onnx(model, batch(2, 5), ["logits", "pooled"], overridable=[name])


def test_an_unknown_opset(model: GatedClassifier) -> None:
    with pytest.raises(GatefxError, match="opset"):
        lower_to_onnx(model, batch(2, 5), ["logits", "pooled"], opset=11)


class BranchesOnData(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"y": x + 1 if bool(x.sum() > 0) else x}


class HasNoOnnxForm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"y": self.inner(x)}


class Inner(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.eigvalsh(x @ x.mT)


def test_a_branch_on_data_is_a_capture_error() -> None:
    with pytest.raises(CaptureError, match="cannot be exported"):
        lower_to_onnx(BranchesOnData().eval(), {"x": torch.randn(2, 3)}, ["y"])


def test_an_operator_without_onnx_form_is_named_with_its_module() -> None:
    with pytest.raises(CaptureError, match=r"eigh.* in module 'inner'"):
        lower_to_onnx(HasNoOnnxForm().eval(), {"x": torch.randn(2, 3, 3)}, ["y"])
