"""One gated encoder the whole way: lower, write the folder, load it three ways; all agree with torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from transformers.exporters.base import ExportedModel
from transformers.modeling_outputs import SequenceClassifierOutput, TokenClassifierOutput

from gatefx.errors import GatefxError, InputError, MissingDependencyError
from gatefx.models.tiny import tiny
from gatefx.passes.lower.onnx import lower_to_onnx, save_onnx
from gatefx.runtime.artifact import ArtifactWriter
from gatefx.runtime.exported_model import write_exported_model_files
from gatefx.runtime.ops.schema import gated_lora
from gatefx.runtime.sessions.onnxruntime import OnnxSession

RANK = 4
TABLE = [[1, 3.0], [2, 0.0], [4, -3.0]]


class Site(nn.Module):
    """A linear layer with a gated update; the gate is set for the whole model before the layer runs."""

    def __init__(self, linear: nn.Linear, router: Router) -> None:
        super().__init__()
        self.linear = linear
        self.router = router
        self.lora_A = nn.Parameter(0.3 * torch.randn(RANK, linear.in_features))
        self.lora_B = nn.Parameter(0.3 * torch.randn(linear.out_features, RANK))
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return gated_lora(self.linear(x), x, self.lora_A, self.lora_B, self.router(x), self.scale)


class Router(nn.Module):
    """Directions whose logit, from the mean token, exceeds the coverage."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.logits = nn.Linear(width, RANK)
        self.register_buffer("coverage", torch.tensor(0.0))

    def forward(self, x: Tensor) -> Tensor:
        logits = self.logits(x.mean(1))
        order = logits.argsort(-1, descending=True)
        return torch.where(logits.gather(1, order) > self.coverage, order, -1)


class GatedBert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = tiny("bert", num_labels=3)
        self.router = Router(32)
        for layer in self.model.bert.encoder.layer:
            layer.attention.self.query = Site(layer.attention.self.query, self.router)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> dict[str, Tensor]:
        answer = self.model(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
        return {"logits": answer.logits}


def batch(examples: int, tokens: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(100 * examples + tokens)
    lengths = torch.randint(1, tokens + 1, (examples, 1), generator=generator)
    return {
        "input_ids": torch.randint(5, 100, (examples, tokens), generator=generator),
        "attention_mask": (torch.arange(tokens) < lengths).long(),
        "token_type_ids": torch.randint(0, 2, (examples, tokens), generator=generator),
    }


@pytest.fixture(scope="module")
def model() -> GatedBert:
    return GatedBert().eval()


@pytest.fixture(scope="module")
def folder(model: GatedBert, tmp_path_factory: pytest.TempPathFactory) -> Path:
    example = batch(2, 6)
    target = tmp_path_factory.mktemp("artifacts") / "bert"
    with ArtifactWriter(target) as writer:
        save_onnx(lower_to_onnx(model, example, ["logits"], overridable=["router.coverage"]), writer.path)
        write_exported_model_files(
            writer.path,
            architecture="BertForSequenceClassification",
            config=model.model.config,
            example=example,
            output_names=["logits"],
            output_class=SequenceClassifierOutput,
        )
        writer.commit(
            {
                "methods": {"ccm": {}},
                "budget": 2,
                "inputs": list(example),
                "outputs": ["logits"],
                "axes": {},
                "runtime_budgets": {"ccm": {"initializer": "router.coverage", "table": TABLE}},
            }
        )
    return target


def test_three_loaders_agree_with_torch(model: GatedBert, folder: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    plain = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    exported = ExportedModel.from_pretrained(folder, session_options=options)
    session = OnnxSession.open(folder, threads=1)
    for examples in range(1, 10):
        for tokens in (3, 4, 7, 16, 33, 64):
            inputs = batch(examples, tokens)
            expected = model(**inputs)["logits"].detach().numpy()
            arrays = {name: value.numpy() for name, value in inputs.items()}
            answer = exported(**inputs)
            assert type(answer) is SequenceClassifierOutput
            assert answer.loss is None
            for found in (plain.run(["logits"], arrays)[0], answer.logits.numpy(), session(**inputs)["logits"]):
                np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_the_budget_moves_the_coverage_as_in_torch(model: GatedBert, folder: Path) -> None:
    session, inputs = OnnxSession.open(folder, threads=1), batch(5, 12)
    answers = []
    for budget in (1, 1.5, 2, 3, 4):
        coverage = float(np.interp(budget, *zip(*TABLE, strict=True)))
        model.router.coverage.fill_(coverage)
        expected = model(**inputs)["logits"].detach().numpy()
        answers.append(session.run(inputs, budget=budget)["logits"])
        np.testing.assert_allclose(answers[-1], expected, rtol=0, atol=1e-5)
    model.router.coverage.fill_(0.0)
    assert np.abs(answers[0] - answers[-1]).max() > 1e-2


def test_the_config_names_the_architecture_and_is_a_copy(model: GatedBert, folder: Path) -> None:
    stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert stored["architectures"] == ["BertForSequenceClassification"]
    assert stored["hidden_size"] == 32
    assert model.model.config.architectures is None


def write(path: Path, **changes: Any) -> None:
    fields: dict[str, Any] = {"architecture": "X", "config": None, "example": batch(2, 3), "output_names": ["logits"]}
    write_exported_model_files(path, **{**fields, **changes})


def test_without_a_class_calls_return_a_dict(folder: Path, tmp_path: Path) -> None:
    for name in ("model.onnx", "model.onnx.data"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    write(tmp_path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    answer = ExportedModel.from_pretrained(tmp_path, session_options=options)(**batch(2, 3))
    assert type(answer) is dict
    assert answer["logits"].shape == (2, 3)
    assert not (tmp_path / "config.json").exists()


@pytest.mark.parametrize(
    ("output_class", "output_names"),
    [
        (SequenceClassifierOutput, ["scores"]),
        (TokenClassifierOutput, ["hidden_states", "logits"]),
        (dict, ["logits"]),
    ],
)
def test_outputs_that_do_not_fit_their_class(tmp_path: Path, output_class: type, output_names: list[str]) -> None:
    with pytest.raises(InputError):
        write(tmp_path, output_class=output_class, output_names=output_names)
    assert list(tmp_path.iterdir()) == []


def test_an_old_transformers_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda package: "5.22.1")
    with pytest.raises(MissingDependencyError, match=r"5\.23"):
        write(tmp_path)


def test_a_newer_layout_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.exporters.base.EXPORT_SCHEMA_VERSION", 2)
    with pytest.raises(GatefxError, match="another layout"):
        write(tmp_path)
