"""`export(…, backend="tensorrt", plugins=True)`: the folder, the plugins that its own copy registers, and refusals."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gatefx
from gatefx.errors import ArtifactError, MissingDependencyError
from gatefx.runtime.artifact import Artifact, ArtifactWriter
from gatefx.runtime.tensorrt import build_engine, plugins
from gatefx.runtime.tensorrt.plugin_registration import register_plugins
from gatefx.runtime.tensorrt.plugins.kernels import TABLE_FILE, Kernel, written_table

EXPORT = """
import sys, numpy, torch, gatefx
from gatefx.methods import CCM
from gatefx.models.tiny import tiny, tiny_inputs
torch.manual_seed(0)
batches = [tiny_inputs("bert", 4, 7, seed) for seed in range(2)]
gated = gatefx.prepare(tiny("bert"), CCM(rank=8), 4, example_inputs=batches[0])
with torch.no_grad():
    for name, buffer in gated.named_buffers():
        if name.endswith("updates"):
            buffer.fill_(1)
    for parameter in gated.parameters():
        if parameter.requires_grad:
            parameter.normal_(std=0.1)
fast = gatefx.optimize(gated, budget=4, data=batches, forms="gathered", progress=False)
gatefx.export(fast, sys.argv[1], backend="tensorrt", precision="fp16", plugins=True)
batch = tiny_inputs("bert", 2, 9, 3)
numpy.savez(sys.argv[1] + ".npz", logits=fast(**batch)["logits"].numpy(), **{k: v.numpy() for k, v in batch.items()})
"""
#: Registers what the folder's own files say, in the order that its build script goes, where gatefx cannot be imported.
REGISTER = """
import runpy, sys
from pathlib import Path
import tensorrt_lean as trt
for name in ("ITensor", "TensorFormat"):
    setattr(trt, name, type(name, (), {}))
sys.modules["gatefx"], sys.modules["tensorrt"] = None, trt
import tensorrt_lean_bindings.plugin as plugin
sys.modules["tensorrt.plugin"] = trt.plugin = plugin
script = runpy.run_path(sys.argv[1] + "/build_engine.py")
print(script["register_plugins"](Path(sys.argv[1])))
creator = trt.get_plugin_registry().get_creator("GatedLora", "1", "gatefx")
print(creator.name, trt.get_plugin_registry().get_creator("RoutedRows", "1", "gatefx"))
"""


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


needs_lean = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_lean") is None or importlib.util.find_spec("triton") is None,
    reason="tensorrt-lean and triton are not both installed here: no plugin is exported and registered "
    "(pip install 'gatefx[tensorrt,triton]')",
)


@needs_lean
def test_the_build_script_registers_the_folders_own_copy(tmp_path: Path) -> None:
    shutil.copyfile(build_engine.__file__, tmp_path / "build_engine.py")
    shutil.copytree(Path(plugins.__file__).parent, tmp_path / "plugins")
    kernel = Kernel("GatedLora", "fp16", 45, 67, 17, 5, 128, 6144, 32, 64, "gated_lora_kernel", "gated.ptx")
    (tmp_path / "plugins" / TABLE_FILE).write_text(written_table([kernel]))

    done = python(REGISTER, str(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-2:] == ["5", "GatedLora None"]


@needs_lean
@pytest.mark.slow
def test_a_folder_registers_the_plugins_of_its_model(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    done = python(EXPORT, str(folder))
    assert done.returncode == 0, done.stderr[-2000:]

    manifest = Artifact.open(folder).manifest
    assert {kernel["operator"] for kernel in manifest["plugins"]} == {"GatedLora"}
    texts = [name for name in manifest["files"] if name.endswith(".ptx")]
    assert len(texts) == len(manifest["plugins"]) > 1
    assert {"plugins/kernels.tsv", "plugins/register.py", "plugins/gated_lora.py", "plugins/source/plugin.cpp"} <= set(
        manifest["files"]
    )
    nodes = sum(kernel["nodes"] for kernel in manifest["plugins"])

    done = python(REGISTER, str(folder))
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-2:] == [str(nodes), "GatedLora None"]


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or importlib.util.find_spec("tensorrt") is None,
    reason="no CUDA device, or no TensorRT here: no engine with plugins is built and run",
)
def test_an_engine_with_plugins_answers_as_torch_does(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    for command in ([sys.executable, "-c", EXPORT, str(folder)], [sys.executable, str(folder / "build_engine.py")]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
    batch = dict(np.load(f"{folder}.npz"))
    logits = batch.pop("logits")
    found = gatefx.load(folder)(**batch)["logits"]
    assert np.abs(found - logits).max() <= 2e-2 * np.abs(logits).max()


def sealed(folder: Path, *files: str) -> Path:
    with ArtifactWriter(folder) as writer:
        for file in files:
            (writer.path / file).parent.mkdir(exist_ok=True)
            (writer.path / file).write_text("")
        description: dict[str, Any] = {"methods": {}, "budget": 1, "inputs": [], "outputs": [], "axes": {}}
        return writer.commit(description).path


def test_folders_without_plugins_are_refused(tmp_path: Path) -> None:
    folder = sealed(tmp_path / "out", "model.onnx")
    with pytest.raises(ArtifactError, match="without plugins") as caught:
        register_plugins(folder)
    assert "plugins=True" in caught.value.remedy


def test_without_tensorrt_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = sealed(tmp_path / "out", "plugins/kernels.tsv")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingDependencyError, match="'tensorrt'"):
        register_plugins(folder)
    assert json.loads((folder / "gatefx.json").read_text())["files"]
