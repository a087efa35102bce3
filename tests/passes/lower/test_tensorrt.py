"""Folders for TensorRT without TensorRT: what they hold, the sizes they state, and what is refused."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch
from onnx import TensorProto

import gatefx
from gatefx.errors import ArtifactError, CaptureError, InputError, MissingDependencyError, ProviderError
from gatefx.methods import CCM
from gatefx.models.tiny import tiny, tiny_inputs
from gatefx.passes.graph.signature import Axis, InputSpec, Signature
from gatefx.passes.lower import tensorrt as module
from gatefx.passes.lower.onnx_precision import Precision, cast_model
from gatefx.passes.lower.tensorrt import profile_of, ranges_of
from gatefx.runtime.artifact import Artifact
from gatefx.runtime.tensorrt.axes import AxisRange
from gatefx.runtime.tensorrt.lint import Finding

FILES = {
    "build_engine.py",
    "build_engine.sh",
    "gatefx.json",
    "model.onnx",
    "model.onnx.data",
    "profiles.json",
}
SIZES = {"batch": (1, 2, 4), "sequence": (2, 8, 16)}


@pytest.fixture(scope="module")
def fast() -> Any:
    """A BERT with routed ranks, its gates random but trained by its word."""
    torch.manual_seed(0)
    batches = [tiny_inputs("bert", 4, 7, seed) for seed in range(2)]
    gated = gatefx.prepare(tiny("bert"), CCM(rank=8), 4, example_inputs=batches[0])
    for name, buffer in gated.named_buffers():
        if name.endswith("updates"):
            buffer.fill_(1)
    with torch.no_grad():
        for parameter in gated.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1)
    return gatefx.optimize(gated, budget=4, data=batches, forms="gathered", progress=False)


@pytest.fixture(scope="module")
def folders(fast: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Precision → folder."""
    root = tmp_path_factory.mktemp("engines")
    return {
        precision: gatefx.export(fast, root / precision, backend="tensorrt", precision=precision, sizes=SIZES)
        for precision in ("fp32", "fp16")
    }


def run(folder: Path, batch: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {k: v.numpy() for k, v in batch.items()}), strict=True))


def test_the_folder_holds_what_an_engine_is_built_from(folders: dict[str, Path], fast: Any) -> None:
    folder = folders["fp16"]
    assert {path.name for path in folder.iterdir()} == FILES
    manifest = Artifact.open(folder).manifest
    assert (manifest["backend"], manifest["precision"], manifest["trial_build"]) == ("tensorrt", "fp16", None)
    assert manifest["built_later"] == ["model.engine"]
    assert "build_engine.sh" in manifest["remains"]
    assert manifest["sizes"]["sequence"] == {"least": 2, "usual": 8, "most": 16}
    assert manifest["budget"] == fast.budget
    assert "runtime_budgets" not in manifest
    assert os.access(folder / "build_engine.sh", os.X_OK)


def test_the_profile_states_every_input(folders: dict[str, Path]) -> None:
    (profile,) = json.loads((folders["fp32"] / "profiles.json").read_text())["profiles"]
    names = {value.name for value in onnx.load(folders["fp32"] / "model.onnx").graph.input}
    assert set(profile) == names
    assert all(shapes == {"min": [1, 2], "opt": [2, 8], "max": [4, 16]} for shapes in profile.values())


def test_the_graph_is_standard_onnx(folders: dict[str, Path]) -> None:
    for folder in folders.values():
        proto = onnx.load(folder / "model.onnx")
        onnx.checker.check_model(proto, full_check=True)
        assert not proto.functions
        assert {node.domain for node in proto.graph.node} == {""}
        assert "Attention" not in {node.op_type for node in proto.graph.node}


@pytest.mark.parametrize(
    ("precision", "half"), [("fp16", onnx_ir.DataType.FLOAT16), ("bf16", onnx_ir.DataType.BFLOAT16)]
)
def test_every_weight_is_of_the_precision(
    folders: dict[str, Path], precision: Precision, half: onnx_ir.DataType
) -> None:
    """But for weights that only float32 nodes read: these have a type of their own, and few entries."""
    model = onnx_ir.load(folders["fp32"] / "model.onnx")
    cast_model(model, precision)
    weights = [w for w in model.graph.initializers.values() if w.dtype.is_floating_point()]
    wide = [w for w in weights if w.dtype == onnx_ir.DataType.FLOAT]
    assert {w.dtype for w in weights} <= {half, onnx_ir.DataType.FLOAT}
    assert sum(w.const_value.size for w in wide) < 0.001 * sum(w.const_value.size for w in weights)
    assert {w.dtype for w in weights if w.name.endswith(".weight")} == {half}
    assert {w.dtype for w in model.graph.outputs} == {onnx_ir.DataType.FLOAT}


def test_the_folder_is_cast(folders: dict[str, Path]) -> None:
    weights = onnx.load(folders["fp16"] / "model.onnx").graph.initializer
    assert {w.data_type for w in weights if w.name.endswith(".weight")} == {TensorProto.FLOAT16}


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-5), ("fp16", 2e-2)])
def test_the_graph_means_what_the_model_does(folders: dict[str, Path], fast: Any, precision: str, bound: float) -> None:
    for size, seed in (((4, 7), 3), ((1, 12), 4)):
        batch = tiny_inputs("bert", *size, seed)
        logits = fast(**batch)["logits"].numpy()
        assert np.abs(run(folders[precision], batch)["logits"] - logits).max() <= bound * np.abs(logits).max()


def test_an_engine_may_come_later_and_nothing_else(folders: dict[str, Path], tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(folders["fp32"], tmp_path / "copy"))
    (copy / "model.engine").write_bytes(b"built")
    Artifact.open(copy)
    (copy / "other.engine").write_bytes(b"built")
    with pytest.raises(ArtifactError, match=r"other\.engine"):
        Artifact.open(copy)


def test_loading_names_what_is_missing(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingDependencyError, match="'tensorrt'") as caught:
        gatefx.load(folders["fp32"])
    assert "pip install tensorrt" in caught.value.remedy
    for options in ({"provider": "cpu"}, {"threads": 2}, {"native": True}):
        with pytest.raises(ProviderError, match="written for TensorRT"):
            gatefx.load(folders["fp32"], **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"precision": "int8"}, "precision='int8'"),
        ({"generate": True}, "generate"),
        ({"opset": 23}, "opset=23"),
        ({"plugins": True, "through": "torch_tensorrt"}, "plugins=True"),
        ({"sizes": [1, 2, 3]}, "[1, 2, 3]"),
        ({"sizes": {"length": (1, 2, 3)}}, "sizes for length"),
        ({"sizes": {"batch": (1, 2)}}, "(1, 2)"),
        ({"sizes": {"batch": (4, 2, 8)}}, "least 4"),
        ({"sizes": {"sequence": (1, 8, 100_000)}}, "100000"),
    ],
)
def test_what_no_engine_can_be_is_refused(fast: Any, options: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        gatefx.export(fast, tmp_path / "out", backend="tensorrt", **options)
    assert said in caught.value.given
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("backend", ["onnxruntime", "aotinductor"])
@pytest.mark.parametrize("options", [{"precision": "fp16"}, {"sizes": SIZES}, {"check": True}, {"plugins": True}])
def test_options_of_engines_are_refused_elsewhere(
    fast: Any, backend: str, options: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        gatefx.export(fast, tmp_path / "model.pt2", backend=backend, **options)
    assert caught.value.given == next(iter(options))
    assert 'backend="tensorrt"' in caught.value.remedy


def test_a_broken_rule_leaves_no_folder(fast: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "lint", lambda *_: (Finding("chooses", "TopK", "k is 9"),))
    with pytest.raises(CaptureError, match="TopK 'chooses': k is 9"):
        gatefx.export(fast, tmp_path / "out", backend="tensorrt")
    assert not any(tmp_path.iterdir())


def signature(*axes: Axis) -> Signature:
    return Signature((InputSpec("x", torch.float32, axes),), ("y",))


def test_usual_sizes_keep_within_the_model() -> None:
    given = signature(Axis("batch"), Axis("sequence", least=2, most=64), Axis("3", size=3))
    ranges = ranges_of(given, None)
    assert ranges == {"batch": AxisRange(1, 8, 32), "sequence": AxisRange(1, 64, 64)}
    assert profile_of(given, ranges) == {"x": {"min": [1, 1, 3], "opt": [8, 64, 3], "max": [32, 64, 3]}}


def test_fixed_sizes_need_no_profile() -> None:
    given = signature(Axis("2", size=2), Axis("3", size=3))
    assert ranges_of(given, {}) == {}
    assert profile_of(given, {}) == {}
