"""What is there and what is not: a listed provider is no device, and every no says what to install."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from gatefx.runtime import capabilities as module
from gatefx.runtime.capabilities import Capability, capabilities

GPU_BUILD = ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider")
NAMES = [
    "ONNX Runtime on CPU",
    "ONNX Runtime on CUDA",
    "ONNX Runtime on TensorRT",
    "OpenVINO on CPU",
    "native kernels for torch",
    "native kernels for ONNX Runtime",
    "Triton kernels",
    "TensorRT engines",
    "trtexec",
    "TensorRT for RTX (trial builds)",
    "torch.compile",
    "transformers",
    "peft",
    "Ray Serve",
    "torch-tensorrt",
    "Optimum",
    "vLLM",
    "Triton Inference Server",
]


def rows() -> dict[str, Capability]:
    return {row.name: row for row in capabilities()}


def without(monkeypatch: pytest.MonkeyPatch, *missing: str) -> None:
    find = importlib.util.find_spec
    fake = types.SimpleNamespace(find_spec=lambda name: None if name in missing else find(name))
    monkeypatch.setattr(module, "importlib", types.SimpleNamespace(util=fake))


def test_each_row_says_either_what_was_found_or_why_not() -> None:
    found = capabilities()
    assert [row.name for row in found] == NAMES
    for row in found:
        assert bool(row.found) == row.available
        assert bool(row.reason) != row.available


def test_what_the_tests_use_is_there() -> None:
    import onnxruntime
    import transformers

    found = rows()
    assert found["ONNX Runtime on CPU"].available == ("CPUExecutionProvider" in onnxruntime.get_available_providers())
    assert found["transformers"].found == transformers.__version__


@pytest.mark.parametrize("gpu", [False, True])
def test_a_listed_provider_needs_its_device(gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "onnxruntime_providers", lambda: (GPU_BUILD, ""))
    monkeypatch.setattr(module, "driver_sees_gpu", lambda: gpu)
    found = rows()
    assert found["ONNX Runtime on CPU"].available
    for name in ("ONNX Runtime on CUDA", "ONNX Runtime on TensorRT"):
        assert found[name].available == gpu
        assert gpu or "driver" in found[name].reason


def test_a_device_needs_the_provider_in_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "onnxruntime_providers", lambda: (("CPUExecutionProvider",), ""))
    monkeypatch.setattr(module, "driver_sees_gpu", lambda: True)
    row = rows()["ONNX Runtime on CUDA"]
    assert not row.available
    assert "gatefx[onnxruntime-gpu]" in row.reason
    assert "driver" not in row.reason


def test_two_builds_of_onnx_runtime_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.metadata, "version", lambda _: "1.0")
    found = rows()
    for name in NAMES[:3]:
        assert not found[name].available
        assert "keep one" in found[name].reason


def test_no_driver_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module._DRIVERS, module.platform.system(), "no-such-driver.so")
    assert module.driver_sees_gpu() is False


@pytest.mark.parametrize(("codes", "devices"), [((0, 0), 1), ((0, 0), 0), ((100, 0), 1), ((0, 3), 1)])
def test_the_driver_must_start_and_count_a_device(
    codes: tuple[int, int], devices: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def count(pointer: object) -> int:
        pointer._obj.value = devices
        return codes[1]

    driver = types.SimpleNamespace(cuInit=lambda _: codes[0], cuDeviceGetCount=count)
    monkeypatch.setattr(module.ctypes, "CDLL", lambda _: driver)
    assert module.driver_sees_gpu() == (codes == (0, 0) and devices > 0)


def test_missing_packages_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = ("triton", "tensorrt_rtx", "transformers", "peft", "ray", "torch_tensorrt", "optimum", "vllm")
    without(monkeypatch, *missing)
    monkeypatch.setattr(module.shutil, "which", lambda _: None)
    found = rows()
    extras = {
        "OpenVINO on CPU": "openvino",
        "Triton kernels": "triton",
        "TensorRT for RTX (trial builds)": "tensorrt",
        "transformers": "hf",
        "peft": "hf",
        "Ray Serve": "serve",
        "torch-tensorrt": "torch-tensorrt",
    }
    for name, extra in extras.items():
        assert not found[name].available
        assert f"pip install 'gatefx[{extra}]'" in found[name].reason
    for name, install in {"Optimum": "optimum", "vLLM": "vllm"}.items():
        assert f"(pip install {install})" in found[name].reason
    assert "no tritonserver on the PATH" in found["Triton Inference Server"].reason


@pytest.mark.parametrize("gpu", [False, True])
def test_engines_need_tensorrt_and_a_gpu(gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "driver_sees_gpu", lambda: gpu)
    without(monkeypatch, "tensorrt")
    monkeypatch.setattr(module.shutil, "which", lambda _: None)
    found = rows()
    for name, missing in (("TensorRT engines", "pip install tensorrt"), ("trtexec", "no trtexec")):
        assert not found[name].available
        assert missing in found[name].reason
        assert ("driver" in found[name].reason) != gpu
    monkeypatch.setattr(module.shutil, "which", lambda tool: f"/opt/{tool}")
    assert rows()["trtexec"].available == gpu


def test_triton_without_a_device_of_torch_is_a_no(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    row = rows()["Triton kernels"]
    assert not row.available
    assert "no CUDA device" in row.reason


def test_torch_compile_needs_the_compiler_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", sys.executable)
    monkeypatch.setattr(module.sysconfig, "get_path", lambda _: str(tmp_path))
    assert "python3-dev" in rows()["torch.compile"].reason
    (tmp_path / "Python.h").touch()
    assert rows()["torch.compile"].found == sys.executable
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "'no-such-compiler'" in rows()["torch.compile"].reason


def test_packages_are_looked_up_and_not_imported() -> None:
    code = (
        "import sys, gatefx.runtime.capabilities; gatefx.runtime.capabilities.capabilities();"
        "heavy = ('transformers', 'peft', 'triton', 'tensorrt_rtx', 'ray', 'torch._inductor.compile_fx');"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_folder_in_optimum_s_namespace_is_no_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    there = types.SimpleNamespace(find_spec=lambda name: object() if name == "optimum" else find(name))
    monkeypatch.setattr(module, "importlib", types.SimpleNamespace(util=there))
    monkeypatch.setattr(module, "_version", lambda _: "")
    assert not rows()["Optimum"].available
