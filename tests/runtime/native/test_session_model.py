from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch

import gatefx
from gatefx.methods import GateRA
from gatefx.models.tiny import tiny, tiny_inputs
from gatefx.runtime.native.session_model import native_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """gatera, hard, on a small BERT."""
    model = tiny("bert")
    data = [tiny_inputs(model, batch=4, tokens=9, seed=seed) for seed in range(2)]
    gated = gatefx.prepare(model, GateRA(rank=4), 0.5, example_inputs=data[0])
    generator = torch.Generator().manual_seed(0)
    for name, parameter in gated.named_parameters():
        if "lora_B" in name or "score" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator)
    fast = gatefx.optimize(gated, data=data, progress=False)
    return gatefx.export(fast, tmp_path_factory.mktemp("gatera") / "out")


def test_an_exported_encoder_has_both_kinds(folder: Path) -> None:
    found = native_model(folder / "model.onnx")
    assert found is not None
    operators = [node.op_type for node in onnx.ModelProto.FromString(found.protobuf).graph.node]
    assert operators.count("MaskedAttention") == found.replaced.attentions > 0
    assert operators.count("ScoreGate") == found.replaced.gates > 0
    assert operators.count("RoutedLinearGelu") == found.replaced.activations > 0
    assert not {"Attention", "Gelu"} & set(operators)


def test_a_session_says_what_it_replaced_and_answers_the_same(folder: Path, native: Path) -> None:
    assert native.is_dir()
    model = tiny("bert")
    given = {name: value.numpy() for name, value in tiny_inputs(model, batch=3, tokens=17, seed=5).items()}
    with_them, without = (gatefx.load(folder, threads=1, native=wanted) for wanted in (True, False))
    found = native_model(folder / "model.onnx")
    assert found is not None
    assert with_them.native.replaced == found.replaced
    assert f"{found.replaced.gates} gates" in str(with_them.native)
    assert "native=False" in str(without.native)
    names = [spec.name for spec in with_them.inputs]
    answers = [session.run({name: given[name] for name in names}) for session in (with_them, without)]
    for name, expected in answers[1].items():
        assert torch.allclose(torch.as_tensor(answers[0][name]), torch.as_tensor(expected), atol=1e-5, rtol=0)
