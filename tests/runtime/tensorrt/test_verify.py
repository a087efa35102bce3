"""Every exported graph keeps the rules of TensorRT, and where its builder is installed, becomes an engine."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import gatefx
from gatefx.config import AdapterConfig
from gatefx.errors import CaptureError, MissingDependencyError
from gatefx.methods import CCM, GateRA, MaskLoRA, WeightLoRA
from gatefx.models.tiny import tiny, tiny_inputs
from gatefx.passes.deployed import DeployedModel
from gatefx.passes.lower.onnx import save_onnx
from gatefx.passes.lower.onnx_precision import cast_model
from gatefx.runtime.artifact import Artifact
from gatefx.runtime.tensorrt import verify as module
from gatefx.runtime.tensorrt.build_files import Profile, write_build_files
from gatefx.runtime.tensorrt.verify import trial_build

from ...sampling import rest_slow

needs_builder = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt-rtx is not installed here: no engine is built (pip install 'gatefx[tensorrt]')",
)
Deployed = Callable[[str, str], DeployedModel]
STEPS = 8
CONFIGS: dict[str, tuple[AdapterConfig, float | None]] = {
    "ccm": (CCM(rank=8), 3),
    "gatera": (GateRA(rank=8), 0.5),
    "weightlora": (WeightLoRA(rank=8), None),
    "masklora": (MaskLoRA(rank=8), 0.5),
}


@pytest.fixture(scope="session")
def deployed() -> Deployed:
    """family, method → a small model, trained for a few steps and hardened; "plain" has its adapters merged."""

    @cache
    def make(family: str, method: str) -> DeployedModel:
        torch.manual_seed(0)
        model = tiny(family)
        data = [tiny_inputs(model, batch=4, tokens=9, seed=seed) for seed in range(3)]
        config, budget = CONFIGS["ccm" if method == "plain" else method]
        gated = gatefx.prepare(model, config, budget=budget, example_inputs=data[0])
        train(gated, data)
        if method == "plain":
            return gatefx.optimize(gated.eval(), budget="100%", fold=True, data=data, progress=False)
        return gatefx.optimize(gated.eval(), data=data, forms="gathered" if method == "ccm" else None, progress=False)

    return make


def train(gated: torch.nn.Module, data: list[dict[str, torch.Tensor]]) -> None:
    optimiser = torch.optim.AdamW([p for p in gated.parameters() if p.requires_grad], lr=1e-2)
    schedule = gated.schedule(STEPS, optimiser)
    gated.train()
    for step in range(STEPS):
        next(iter(gated(**data[step % 3]).values())).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()


def one_product(folder: Path, *, width: int = 32, profile: Profile | None = None) -> Path:
    """A folder whose model is one MatMul (n, 32) · (width, 16)."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="multiplies")],
        "one_product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 16])],
        [numpy_helper.from_array(np.ones((width, 16), np.float32), "w")],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), folder / "model.onnx"
    )
    write_build_files(folder, profile or {"x": {"min": [1, 32], "opt": [4, 32], "max": [8, 32]}})
    return folder


@pytest.mark.parametrize("method", rest_slow(["masklora", "gatera", "weightlora"]))
def test_exported_graphs_keep_the_rules(method: str, deployed: Deployed, tmp_path: Path) -> None:
    """Export raises if they do not; ccm is in `tests/passes/lower/test_tensorrt.py`."""
    model = deployed("bert", method)
    folder = gatefx.export(model, tmp_path / "out", backend="tensorrt", precision="fp16")
    operators = [node.op_type for node in onnx.load(folder / "model.onnx", load_external_data=False).graph.node]
    assert ("TopK" in operators) == (method == "masklora")


def assert_built_in_every_precision(model: DeployedModel, folder: Path) -> None:
    """Exported once, as that takes longest; the casts are those of the export."""
    gatefx.export(model, folder / "fp32", backend="tensorrt", check=True)
    trial = Artifact.open(folder / "fp32").manifest["trial_build"]
    assert trial["builder"].startswith("tensorrt-rtx 1.")
    assert trial["engine_bytes"] > 0
    for precision in ("fp16", "bf16"):
        cast = onnx_ir.load(folder / "fp32" / "model.onnx")
        cast_model(cast, precision)
        (folder / precision).mkdir()
        save_onnx(cast, folder / precision)
        shutil.copy(folder / "fp32" / "profiles.json", folder / precision)
        assert trial_build(folder / precision).engine_bytes > 0, precision


@needs_builder
@pytest.mark.parametrize("method", ["plain", *CONFIGS])
def test_exported_graphs_become_engines(method: str, deployed: Deployed, tmp_path: Path) -> None:
    assert_built_in_every_precision(deployed("bert", method), tmp_path)


@pytest.mark.slow
@needs_builder
@pytest.mark.parametrize("family", ["roberta", "distilbert", "electra", "mpnet", "albert", "modernbert", "llama"])
@pytest.mark.parametrize("method", ["ccm", "gatera", "weightlora"])
def test_other_families_become_engines(family: str, method: str, deployed: Deployed, tmp_path: Path) -> None:
    assert_built_in_every_precision(deployed(family, method), tmp_path)


@needs_builder
def test_a_trial_says_what_was_built(tmp_path: Path) -> None:
    trial = trial_build(one_product(tmp_path))
    assert trial.builder.startswith("tensorrt-rtx 1.")
    assert trial.engine_bytes > 0
    assert "model.engine" not in {path.name for path in tmp_path.iterdir()}


@needs_builder
def test_a_graph_that_cannot_be_built_is_refused_in_the_parsers_words(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="does not take the graph") as caught:
        trial_build(one_product(tmp_path, width=31))
    assert "multiplies" in caught.value.given


@needs_builder
def test_a_profile_that_does_not_fit_is_refused_in_the_builders_words(tmp_path: Path) -> None:
    profile = {"x": {"min": [1, 31], "opt": [4, 31], "max": [8, 31]}}
    with pytest.raises(CaptureError) as caught:
        trial_build(one_product(tmp_path, profile=profile))
    assert "x" in caught.value.given


@needs_builder
def test_a_refusal_leaves_no_folder(deployed: Deployed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> bytes:
        raise module.RefusedError("TopK 'chooses': no such layer")

    monkeypatch.setattr(module, "build", refuse)
    with pytest.raises(CaptureError, match="TopK 'chooses': no such layer"):
        gatefx.export(deployed("bert", "weightlora"), tmp_path / "out", backend="tensorrt", check=True)
    assert not any(tmp_path.iterdir())


def test_a_missing_builder_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(MissingDependencyError, match="'tensorrt-rtx'") as caught:
        trial_build(one_product(tmp_path))
    assert "gatefx[tensorrt]" in caught.value.remedy
