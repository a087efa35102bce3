"""Programs and folders for torch-tensorrt, without it: what they mean, the sizes they state, and what is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

import gatefx
from gatefx.config import AdapterConfig
from gatefx.errors import InputError, MissingDependencyError
from gatefx.methods import CCM, TSPEFT, GateRA, MaskLoRA
from gatefx.models.tiny import tiny, tiny_inputs
from gatefx.passes.deployed import DeployedModel
from gatefx.passes.graph.signature import example_for
from gatefx.passes.lower.aotinductor import gatefx_operators
from gatefx.passes.lower.tensorrt import ranges_of
from gatefx.passes.lower.torch_tensorrt import example_within, lower_to_torch_tensorrt
from gatefx.runtime.artifact import Artifact

from ...sampling import rest_slow

Deployed = Callable[[str], DeployedModel]
CONFIGS: dict[str, tuple[AdapterConfig, float | None]] = {
    "ccm": (CCM(rank=8), 3),
    "gatera": (GateRA(rank=8), 0.5),
    "masklora": (MaskLoRA(rank=8), 0.5),
    "tspeft": (TSPEFT(rank=8), None),
}
#: Operators that have no form in ATen.
STAY = {"gatera": ("gatefx::routed_linear",), "masklora": ("gatefx::select_tokens",)}
SIZES = {"batch": (1, 2, 4), "sequence": (2, 8, 16)}


@pytest.fixture(scope="module")
def deployed() -> Deployed:
    @cache
    def make(method: str) -> DeployedModel:
        torch.manual_seed(0)
        model = tiny("bert")
        data = [tiny_inputs(model, batch=2, tokens=7)]
        config, budget = CONFIGS[method]
        gated = gatefx.prepare(model, config, budget=budget, example_inputs=data[0])
        for name, buffer in gated.named_buffers():
            if name.endswith("updates"):
                buffer.fill_(1)  # random gates, trained by their word
        with torch.no_grad():
            for parameter in gated.parameters():
                if parameter.requires_grad:
                    parameter.normal_(std=0.1)
        forms = "gathered" if method == "ccm" else None
        return gatefx.optimize(gated.eval(), data=data, forms=forms, progress=False)

    return make


@pytest.mark.parametrize("method", rest_slow(["gatera", "masklora", "ccm", "tspeft"]))
def test_the_program_means_what_the_model_does(method: str, deployed: Deployed) -> None:
    fast = deployed(method)
    ranges = ranges_of(fast.signature, SIZES)
    example = example_within(example_for(fast.signature), fast.signature, ranges)
    program = lower_to_torch_tensorrt(fast.graph_module, fast.signature, example, ranges)
    assert gatefx_operators(program) == STAY.get(method, ())
    bounds = {(int(size.lower), int(size.upper)) for size in program.range_constraints.values()}
    assert {(1, 4), (2, 16)} <= bounds
    for shape in ((1, 2), (4, 16), (3, 9)):
        batch = tiny_inputs("bert", *shape, seed=5)
        answer = program.module()(*(batch[name] for name in fast.signature.input_names))
        torch.testing.assert_close(answer["logits"], fast(**batch)["logits"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", rest_slow(["gatera", "ccm"]))
def test_sixteen_bits_are_near(method: str, deployed: Deployed) -> None:
    fast = deployed(method)
    ranges = ranges_of(fast.signature, SIZES)
    example = example_within(example_for(fast.signature), fast.signature, ranges)
    program = lower_to_torch_tensorrt(fast.graph_module, fast.signature, example, ranges, "fp16")
    batch = tiny_inputs("bert", 3, 9, seed=5)
    answer = program.module()(*(batch[name] for name in fast.signature.input_names))["logits"]
    logits = fast(**batch)["logits"]
    assert answer.dtype == torch.float32
    assert 0 < (answer - logits).abs().max() <= 2e-2 * logits.abs().max()


def test_an_example_is_cut_and_repeated_to_the_sizes(deployed: Deployed) -> None:
    signature = deployed("ccm").signature
    ranges = ranges_of(signature, {"batch": (3, 3, 3), "sequence": (1, 4, 5)})
    example = example_within(example_for(signature), signature, ranges)
    assert {tuple(value.shape) for value in example.values()} == {(3, 5)}


@pytest.fixture(scope="module")
def folder(deployed: Deployed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("through") / "out"
    return gatefx.export(deployed("ccm"), out, backend="tensorrt", through="torch_tensorrt", sizes=SIZES)


def test_the_folder_holds_what_an_engine_is_built_from(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {
        "build_engine.py",
        "gatefx.json",
        "profiles.json",
        "program.pt2",
    }
    manifest = Artifact.open(folder).manifest
    assert (manifest["backend"], manifest["through"], manifest["dry_run"]) == ("tensorrt", "torch_tensorrt", None)
    assert manifest["engine_outputs"] == {"logits": "output0"}
    assert manifest["built_later"] == ["model.engine"]
    assert "build_engine.py" in manifest["remains"]
    assert "opset" not in manifest
    (profile,) = json.loads((folder / "profiles.json").read_text())["profiles"]
    assert all(shapes == {"min": [1, 2], "opt": [2, 8], "max": [4, 16]} for shapes in profile.values())


def test_the_folder_holds_the_program(folder: Path, deployed: Deployed) -> None:
    batch = tiny_inputs("bert", 2, 5, seed=1)
    program = torch.export.load(folder / "program.pt2")
    logits = program.module()(*(batch[name] for name in deployed("ccm").signature.input_names))["logits"]
    torch.testing.assert_close(logits, deployed("ccm")(**batch)["logits"], rtol=1e-5, atol=1e-5)


def test_a_check_without_torch_tensorrt_names_it_and_leaves_no_folder(
    deployed: Deployed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch_tensorrt", None)
    with pytest.raises(MissingDependencyError, match="'torch-tensorrt'"):
        gatefx.export(deployed("ccm"), tmp_path / "out", backend="tensorrt", through="torch_tensorrt", check=True)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("options", [{"through": "torch-tensorrt"}, {"through": "torch_tensorrt", "opset": 20}])
def test_another_way_or_an_opset_is_refused(deployed: Deployed, tmp_path: Path, options: dict[str, object]) -> None:
    with pytest.raises(InputError, match="no such way"):
        gatefx.export(deployed("ccm"), tmp_path / "out", backend="tensorrt", **options)  # type: ignore[arg-type]


def test_other_backends_take_no_way(deployed: Deployed, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="through"):
        gatefx.export(deployed("ccm"), tmp_path / "out", through="torch_tensorrt")
