from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from peft import LoraConfig, get_peft_model

import gatefx
from gatefx.errors import ArtifactError, InputError, ProviderError
from gatefx.models.tiny import tiny, tiny_inputs
from gatefx.runtime.artifact import ArtifactWriter

WITHOUT_TORCH = """
import json, sys
sys.modules["torch"] = None
import numpy, gatefx
session = gatefx.load(sys.argv[1])
ones = numpy.ones((2, 5), numpy.int64)
print(json.dumps(session.run({spec.name: ones for spec in session.inputs})["logits"].tolist()))
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = get_peft_model(tiny("bert"), LoraConfig(r=4, target_modules=["query"]))
    fast = gatefx.optimize(model, "ccm", 4, data=[tiny_inputs("bert", batch=2, tokens=9)], progress=False)
    return gatefx.export(fast, tmp_path_factory.mktemp("exported") / "out")


def folder_of(kind: str, backend: str, folder: Path) -> Path:
    """An artifact that says what it holds, and holds nothing."""
    with ArtifactWriter(folder) as writer:
        empty = {"methods": {}, "budget": 1, "inputs": [], "outputs": [], "axes": {}}
        return writer.commit({"kind": kind, "backend": backend, **empty}).path


def test_an_encoder_runs_where_torch_is_not(exported: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(exported)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    session = gatefx.load(exported)
    expected = session.run({spec.name: np.ones((2, 5), np.int64) for spec in session.inputs})["logits"]
    np.testing.assert_array_equal(np.asarray(json.loads(done.stdout), np.float32), expected)


@pytest.mark.parametrize(("kind", "remedy"), [("gates", "from_pretrained"), ("optimum decoder", "ORTModelForCausalLM")])
def test_folders_that_hold_something_else_say_what_opens_them(kind: str, remedy: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=kind) as caught:
        gatefx.load(folder_of(kind, "onnxruntime", tmp_path / "out"))
    assert remedy in caught.value.remedy


@pytest.mark.parametrize("options", [{"provider": "cpu"}, {"threads": 1}, {"native": True}])
def test_an_engine_s_folder_takes_no_option_of_onnx_runtime(options: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(ProviderError, match="written for TensorRT"):
        gatefx.load(folder_of("model", "tensorrt", tmp_path / "out"), **options)


def test_what_is_no_provider_and_no_switch_is_refused(exported: Path) -> None:
    with pytest.raises(ProviderError):
        gatefx.load(exported, provider="")
    with pytest.raises(InputError, match="native is a switch"):
        gatefx.load(exported, native="yes")  # type: ignore[arg-type]


def test_a_decoder_is_not_opened_in_openvino(tmp_path: Path) -> None:
    with pytest.raises(ProviderError, match="ONNX Runtime only"):
        gatefx.load(folder_of("decoder", "onnxruntime", tmp_path / "out"), provider="openvino")


def test_a_folder_of_nothing_is_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError):
        gatefx.load(tmp_path)
