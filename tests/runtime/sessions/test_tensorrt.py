"""Sessions on engines: what stands against opening one is named; where a GPU is, answers are the model's."""

from __future__ import annotations

import json
import subprocess
import sys
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import gatefx
from gatefx.errors import ArtifactError, BudgetError, InputError, MissingDependencyError, ProviderError
from gatefx.methods import CCM
from gatefx.models.tiny import tiny, tiny_inputs
from gatefx.runtime.artifact import Artifact, ArtifactWriter
from gatefx.runtime.sessions.tensorrt import TensorRTSession

Mode = Enum("Mode", "INPUT OUTPUT")
DESCRIPTION = {
    "methods": {},
    "budget": 4,
    "inputs": ["ids"],
    "outputs": ["logits"],
    "axes": {"ids": ["batch", "sequence"]},
    "backend": "tensorrt",
    "built_later": ["model.engine"],
}
PROFILE = {"ids": {"min": [1, 2], "opt": [2, 4], "max": [4, 8]}}


class FakeEngine:
    """What a session asks an engine before it runs."""

    num_io_tensors = 2
    tensors = (("ids", Mode.INPUT, "int64", (-1, -1)), ("logits", Mode.OUTPUT, "float32", (-1, 3)))

    def create_execution_context(self) -> None:
        return None

    def get_tensor_name(self, place: int) -> str:
        return self.tensors[place][0]

    def _row(self, name: str) -> tuple[Any, ...]:
        return next(row for row in self.tensors if row[0] == name)

    def get_tensor_mode(self, name: str) -> Mode:
        return self._row(name)[1]

    def get_tensor_dtype(self, name: str) -> str:
        return self._row(name)[2]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._row(name)[3]


def fake_tensorrt(engine: FakeEngine | None) -> SimpleNamespace:
    return SimpleNamespace(
        __version__="11.4",
        Logger=type("Logger", (), {"ERROR": 1, "__init__": lambda *_: None}),
        Runtime=lambda _: SimpleNamespace(deserialize_cuda_engine=lambda _: engine),
        TensorIOMode=Mode,
        nptype=np.dtype,
    )


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    with ArtifactWriter(tmp_path / "out") as writer:
        (writer.path / "profiles.json").write_text(json.dumps({"profiles": [PROFILE]}))
        return writer.commit(DESCRIPTION)


@pytest.fixture
def session(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> TensorRTSession:
    (artifact.path / "model.engine").write_bytes(b"built")
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt(FakeEngine()))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    return TensorRTSession.open(artifact)


def test_a_missing_package_is_named(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingDependencyError, match="'tensorrt'"):
        TensorRTSession.open(artifact)


def test_a_machine_without_a_gpu_is_named(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt(None))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ProviderError, match="GPU"):
        TensorRTSession.open(artifact)


def test_an_engine_that_is_not_there_or_not_for_this_machine_is_named(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt(None))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ArtifactError, match="not built yet") as caught:
        TensorRTSession.open(artifact)
    assert "build_engine.sh" in caught.value.remedy
    (artifact.path / "model.engine").write_bytes(b"of another machine")
    with pytest.raises(ArtifactError, match=r"11\.4 does not load"):
        TensorRTSession.open(artifact)


def test_inputs_and_outputs_have_the_names_of_the_manifest(session: TensorRTSession) -> None:
    assert [str(spec) for spec in session.inputs] == ["ids: int64 (batch, sequence)"]
    assert [str(spec) for spec in session.outputs] == ["logits: float32 (?, 3)"]
    assert session.provider == "TensorRT"


def test_outputs_that_an_engine_names_otherwise_have_their_own_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ArtifactWriter(tmp_path / "out") as writer:
        (writer.path / "profiles.json").write_text(json.dumps({"profiles": [PROFILE]}))
        renamed = {"outputs": ["scores"], "engine_outputs": {"scores": "logits"}}
        artifact = writer.commit(DESCRIPTION | renamed)
    (artifact.path / "model.engine").write_bytes(b"built")
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt(FakeEngine()))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    session = TensorRTSession.open(artifact)
    assert [str(spec) for spec in session.outputs] == ["scores: float32 (?, 3)"]
    assert [spec.name for spec in session.inputs] == ["ids"]


@pytest.mark.parametrize("size", [(5, 4), (2, 9), (2, 1)])
def test_a_size_that_the_engine_was_not_built_for_is_refused(session: TensorRTSession, size: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="not built for this size") as caught:
        session(ids=np.zeros(size, np.int64))
    assert caught.value.given == str(size)
    assert "(4, 8)" in caught.value.expected


def test_the_budget_is_that_of_the_export(session: TensorRTSession) -> None:
    assert session.budget == 4
    with pytest.raises(BudgetError, match="fixed"):
        session.budget = 2
    with pytest.raises(BudgetError, match="fixed"):
        session.run({"ids": np.zeros((2, 4), np.int64)}, budget=2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here: no engine is run")
@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-2), ("fp16", 3e-2), ("bf16", 1e-1)])
def test_an_engine_answers_as_the_model_does(precision: str, bound: float, tmp_path: Path) -> None:
    """float32 products may be taken in TF32, hence its bound."""
    pytest.importorskip("tensorrt")
    data = [tiny_inputs("bert", 4, 7, seed) for seed in range(2)]
    gated = gatefx.prepare(tiny("bert"), CCM(rank=8), 4, example_inputs=data[0])
    for name, buffer in gated.named_buffers():
        if name.endswith("updates"):
            buffer.fill_(1)
    fast = gatefx.optimize(gated, budget="100%", fold=True, data=data, progress=False)
    folder = gatefx.export(fast, tmp_path / "out", backend="tensorrt", precision=precision)
    subprocess.run([sys.executable, folder / "build_engine.py"], check=True)
    session = gatefx.load(folder)
    for batch in data:
        logits = fast(**batch)["logits"].numpy()
        assert np.abs(session(**batch)["logits"] - logits).max() <= bound * np.abs(logits).max()
