"""Adapters beside an exported model: every request chooses one, of any rank, and what does not fit is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

import gatefx
from gatefx.errors import InputError, SiteError
from gatefx.methods import CCM
from gatefx.models.tiny import tiny, tiny_inputs
from gatefx.passes.deployed import DeployedModel
from gatefx.runtime.sessions.onnxruntime import OnnxSession

LAYERS = ["query", "value", "output.dense"]


def peft_model(seed: int, **options: Any) -> PeftModel:
    """Tiny BERT with a random adapter and a random head."""
    torch.manual_seed(seed)
    config = LoraConfig(**{"r": 4, "target_modules": LAYERS, "task_type": "SEQ_CLS", **options})
    model = get_peft_model(tiny("bert"), config).eval()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2 if "lora_" in name else 0.5)
    return model


def deployed(model: PeftModel, **options: Any) -> DeployedModel:
    return gatefx.optimize(
        model, CCM(rank=4), "100%", data=[tiny_inputs("bert", 4, 9)], fold=False, progress=False, **options
    )


@pytest.fixture(scope="module")
def others() -> dict[str, PeftModel]:
    """Adapters of one base model: another rank, patterns and rsLoRA, fewer layers."""
    return {
        "higher": peft_model(1, r=7, lora_alpha=3),
        "mixed": peft_model(2, rank_pattern={"layer.1.attention.self.query": 2}, alpha_pattern={"value": 5}),
        "rooted": peft_model(3, use_rslora=True),
        "fewer": peft_model(4, target_modules=["query"]),
    }


@pytest.fixture(scope="module")
def folder(others: dict[str, PeftModel], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("adapters")
    for name, model in others.items():
        model.save_pretrained(root / name)
    adapters = {name: root / name for name in others}
    return gatefx.export(deployed(peft_model(0)), root / "out", adapters=adapters)


def test_a_request_takes_the_adapter_that_it_names(folder: Path, others: dict[str, PeftModel]) -> None:
    session = gatefx.load(folder)
    assert isinstance(session, OnnxSession)
    assert session.adapters == tuple(sorted(others))
    batch = tiny_inputs("bert", 3, 11, seed=5)
    answers = {}
    with torch.no_grad():
        for name, model in {None: peft_model(0), **others}.items():
            answers[name] = session.run(batch, adapter=name)["logits"]
            np.testing.assert_allclose(answers[name], model(**batch).logits.numpy(), rtol=0, atol=1e-5)
    assert min(np.abs(answers["higher"] - answers[name]).max() for name in answers if name != "higher") > 1e-2
    session.adapter = "mixed"
    np.testing.assert_array_equal(session(**batch)["logits"], answers["mixed"])
    session.adapter = None
    np.testing.assert_array_equal(session(**batch)["logits"], answers[None])


def test_ranks_are_free_in_the_model(folder: Path) -> None:
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    sizes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in graph.input
    }
    path = "bert.encoder.layer.0.attention.self.query"
    assert sizes[f"{path}.lora_A.weight"] == [32, "rank_0"]
    assert sizes[f"{path}.lora_B.weight"] == ["rank_0", 32]
    onnx.checker.check_model(str(folder / "model.onnx"), full_check=True)


def test_unknown_adapters_are_refused(folder: Path) -> None:
    session = gatefx.load(folder)
    assert isinstance(session, OnnxSession)
    with pytest.raises(InputError, match=r"no such adapter[\s\S]*'other'[\s\S]*fewer, higher, mixed"):
        session.run(tiny_inputs("bert", 2, 5), adapter="other")
    with pytest.raises(InputError, match="no such adapter"):
        session.adapter = "other"


def test_adapters_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    model = deployed(peft_model(0))
    peft_model(1, target_modules=["key"]).save_pretrained(tmp_path / "elsewhere")
    peft_model(1, task_type=None).save_pretrained(tmp_path / "headless")
    cases: list[tuple[dict[Any, Any], type[Exception], str]] = [
        ({"a": tmp_path / "elsewhere"}, SiteError, r"changes what[\s\S]*self\.key"),
        ({"a": tmp_path / "headless"}, SiteError, r"lacks what[\s\S]*classifier\.weight"),
        ({"../a": tmp_path / "elsewhere"}, InputError, "becomes a file's"),
        ({"a": 3}, InputError, "int"),
    ]
    for adapters, error, words in cases:
        with pytest.raises(error, match=words):
            gatefx.export(model, tmp_path / "out", adapters=adapters)
        assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="keeps the adapter"):
        gatefx.export(model, tmp_path / "out", adapters={"a": tmp_path / "headless"}, generate=True)


def test_models_that_decide_are_refused(tmp_path: Path) -> None:
    fast = gatefx.optimize(peft_model(0), CCM(rank=4), 2, data=[tiny_inputs("bert", 4, 9)], progress=False)
    peft_model(1).save_pretrained(tmp_path / "other")
    with pytest.raises(SiteError, match="no plain LoRA"):
        gatefx.export(fast, tmp_path / "out", adapters={"other": tmp_path / "other"})
    assert not (tmp_path / "out").exists()
