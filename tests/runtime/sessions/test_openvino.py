"""Exported folders of every method in OpenVINO: the numbers of ONNX Runtime, at every size and budget."""

from __future__ import annotations

import builtins
import importlib.util
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gatefx
from gatefx.errors import ArtifactError, BudgetError, InputError, MissingDependencyError, ProviderError
from gatefx.models.configs.catalogue import METHODS
from gatefx.models.tiny import tiny, tiny_inputs
from gatefx.passes.deployed import DeployedModel
from gatefx.runtime.artifact import Artifact, ArtifactWriter
from gatefx.runtime.sessions.openvino import open_in_openvino

needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None,
    reason="openvino is not installed here: make openvino-checks, or pip install 'gatefx[openvino]'",
)
RANK, STEPS = 8, 6
BUDGETS: dict[str, float | None] = {
    "plain": RANK,
    "ccm": 3,
    "gatera": 0.5,
    "weightlora": None,
    "tspeft": 0.5,
    "masklora": 0.5,
}
CHANGED = {"ccm": 5, "gatera": 0.75, "tspeft": 0.75, "masklora": 0.75}


def deployed(method: str) -> DeployedModel:
    """A small BERT, trained for a few steps with `method` and hardened; "plain" has every rank, folded."""
    model = tiny("bert")
    data = [tiny_inputs(model, batch=4, tokens=12, seed=seed) for seed in range(3)]
    config: Any = replace(METHODS["ccm" if method == "plain" else method], rank=RANK)
    if method == "masklora":
        config = replace(config, keep=((1, 0.5),), floor=0.0)
    gated = gatefx.prepare(model, config, budget=BUDGETS[method], example_inputs=data[0])
    optimiser = torch.optim.AdamW([p for p in gated.parameters() if p.requires_grad], lr=1e-2)
    schedule = gated.schedule(STEPS, optimiser)
    gated.train()
    for step in range(STEPS):
        next(iter(gated(**data[step % 3]).values())).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
    options: dict[str, Any] = {"ccm": {"forms": "gathered"}, "plain": {"fold": True}}.get(method, {})
    return gatefx.optimize(gated.eval(), data=data, progress=False, **options)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """method → its folder; made once."""

    @cache
    def make(method: str) -> Path:
        return gatefx.export(deployed(method), tmp_path_factory.mktemp("openvino") / method)

    return make


def given(batch: int, tokens: int) -> dict[str, np.ndarray]:
    """Ids and a ragged mask, both (B, T)."""
    inputs = tiny_inputs("bert", batch=batch, tokens=tokens, seed=batch * tokens)
    return {name: inputs[name].numpy() for name in ("input_ids", "attention_mask")}


@needs_openvino
@pytest.mark.parametrize("method", BUDGETS)
def test_every_method_answers_as_in_onnx_runtime(method: str, exported: Callable[[str], Path]) -> None:
    here, there = (gatefx.load(exported(method), provider=name, threads=1) for name in ("openvino", "cpu"))
    assert here.provider == "OpenVINO CPU"
    assert not here.native.active
    assert (here.inputs, here.outputs, here.overridable) == (there.inputs, there.outputs, there.overridable)
    for batch, tokens in ((1, 6), (2, 9), (3, 17), (5, 33)):
        found, expected = here(**given(batch, tokens)), there(**given(batch, tokens))
        assert list(found) == list(expected)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-5)


@needs_openvino
@pytest.mark.parametrize(("method", "budget"), CHANGED.items())
def test_budgets_change_alike(method: str, budget: float, exported: Callable[[str], Path]) -> None:
    here, there = (gatefx.load(exported(method), provider=name) for name in ("openvino", "cpu"))
    inputs = given(3, 14)
    before = here(**inputs)["logits"]
    found = here.run(inputs, budget=budget)["logits"]
    np.testing.assert_allclose(found, there.run(inputs, budget=budget)["logits"], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(here(**inputs)["logits"], before)
    here.budget = budget
    np.testing.assert_array_equal(here(**inputs)["logits"], found)
    with pytest.raises(BudgetError, match="not one the artifact was calibrated for"):
        here.run(inputs, budget=1000)


@needs_openvino
def test_threads_may_call_one_session(exported: Callable[[str], Path]) -> None:
    session = gatefx.load(exported("ccm"), provider="openvino")
    batches = [given(2, 4 + tokens) for tokens in range(8)]
    alone = [session(**batch)["logits"] for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda batch: session(**batch)["logits"], batches))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


@needs_openvino
def test_what_does_not_fit_is_refused(exported: Callable[[str], Path], tmp_path: Path) -> None:
    session = gatefx.load(exported("plain"), provider="openvino")
    with pytest.raises(InputError, match="lacks the input"):
        session(input_ids=[[1, 2]])
    with pytest.raises(InputError, match="number of threads"):
        gatefx.load(exported("plain"), provider="openvino", threads=0)
    with pytest.raises(ArtifactError, match=r"OpenVINO .* does not load model\.onnx"):
        gatefx.load(written(tmp_path / "broken", kind="model"), provider="openvino")


def written(folder: Path, kind: str) -> Path:
    """An artifact whose model is no model."""
    with ArtifactWriter(folder) as writer:
        (writer.path / "model.onnx").write_bytes(b"no graph")
        return writer.commit({"kind": kind, "methods": {}, "budget": 1, "inputs": [], "outputs": [], "axes": {}}).path


def test_native_kernels_and_decoders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ProviderError, match="native kernels"):
        open_in_openvino(Artifact.open(written(tmp_path / "model", kind="model")), native=True)
    with pytest.raises(ProviderError, match="ONNX Runtime only"):
        gatefx.load(written(tmp_path / "decoder", kind="decoder"), provider="openvino")


def test_a_missing_package_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = written(tmp_path / "model", kind="model")
    imported = builtins.__import__

    def absent(name: str, *more: Any, **options: Any) -> Any:
        if name == "openvino":
            raise ImportError(name)
        return imported(name, *more, **options)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(MissingDependencyError, match=r"gatefx\[openvino\]"):
        gatefx.load(folder, provider="openvino")
