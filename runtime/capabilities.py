"""Which engines, kernels and packages this process could really use; each no has its reason and what to install.

Packages are looked up, not imported, but for two: torch, which gatefx stands on, and ONNX Runtime, which alone knows
the providers of its build. A build with a provider is no machine with its device, so GPU providers also need the driver
to see one. Their other libraries (cuDNN, TensorRT) show when a session starts: `gatefx.load(…, provider=…)`
raises then.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import shutil
import sysconfig
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from .native.library import NativeStatus, native_status

_DRIVERS = {"Linux": "libcuda.so.1", "Windows": "nvcuda.dll"}
_COMPILERS = {"Darwin": "clang++", "Windows": "cl"}
_GPU_BUILD = "pip uninstall onnxruntime && pip install 'gatefx[onnxruntime-gpu]'"


@dataclass(frozen=True)
class Capability:
    """One thing that a model may run on or be made with.

    Attributes:
        name: what it is; available: whether it would work here.
        reason: why not, with what would change it; empty where it is available.
        found: version or place; empty where it is not available.
    """

    name: str
    available: bool
    reason: str = ""
    found: str = ""


def capabilities() -> tuple[Capability, ...]:
    """What this machine and environment have: engines, native and Triton kernels, torch.compile, packages.

    Raises nothing for what is missing: that is a row with `available=False` and its reason.
    """
    import torch  # the native library for torch is linked against it

    in_torch, gpu = torch.cuda.is_available(), driver_sees_gpu()
    return (
        *_onnxruntime(gpu),
        _package("OpenVINO on CPU", "openvino", "openvino", "openvino"),
        _native("native kernels for torch", native_status("torch")),
        _native("native kernels for ONNX Runtime", native_status("onnxruntime")),
        _triton(in_torch),
        _tensorrt(gpu),
        _trtexec(gpu),
        _package("TensorRT for RTX (trial builds)", "tensorrt-rtx", "tensorrt_rtx", "tensorrt"),
        _compile(),
        _package("transformers", "transformers", "transformers", "hf"),
        _package("peft", "peft", "peft", "hf"),
        _package("Ray Serve", "ray", "ray", "serve"),
        _package("torch-tensorrt", "torch-tensorrt", "torch_tensorrt", "torch-tensorrt"),
        _package("Optimum", "optimum", "optimum", None),
        _package("vLLM", "vllm", "vllm", None),
        _program("Triton Inference Server", "tritonserver", "it comes with NVIDIA's container, or nvidia-pytriton"),
    )


def onnxruntime_providers() -> tuple[tuple[str, ...], str]:
    """(providers of the installed build of ONNX Runtime, why there are none); one of the two is empty."""
    if _version("onnxruntime") and _version("onnxruntime-gpu"):
        return (), "onnxruntime and onnxruntime-gpu are both installed: keep one"
    try:
        import onnxruntime
    except ImportError as error:
        return (), f"{error}; pip install 'gatefx[onnxruntime]'"
    return tuple(onnxruntime.get_available_providers()), ""


def driver_sees_gpu() -> bool:
    """Whether NVIDIA's driver is there and has a device, whatever torch was built for."""
    try:
        driver = ctypes.CDLL(_DRIVERS.get(platform.system(), _DRIVERS["Linux"]))
    except OSError:
        return False
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def _onnxruntime(gpu: bool) -> tuple[Capability, ...]:
    build, reason = onnxruntime_providers()
    return (
        _provider("ONNX Runtime on CPU", "CPUExecutionProvider", build, reason),
        _provider("ONNX Runtime on CUDA", "CUDAExecutionProvider", build, reason or _no_gpu(gpu)),
        _provider("ONNX Runtime on TensorRT", "TensorrtExecutionProvider", build, reason or _no_gpu(gpu)),
    )


def _provider(name: str, provider: str, build: tuple[str, ...], reason: str) -> Capability:
    if build and provider not in build:
        missing = f"this build of ONNX Runtime has only {', '.join(build)} ({_GPU_BUILD})"
        reason = "; ".join(filter(None, (missing, reason)))
    return Capability(name, not reason, reason, "" if reason else provider)


def _no_gpu(gpu: bool) -> str:
    return "" if gpu else "no NVIDIA driver that sees a GPU (install the driver, on a machine that has one)"


def _native(name: str, status: NativeStatus) -> Capability:
    if not status.active:
        return Capability(name, False, status.reason)
    others = ", ".join(isa for isa in status.isas if isa != status.isa)
    return Capability(name, True, "", f"{status.isa} (also there: {others or 'nothing else'}), {status.library}")


def _triton(in_torch: bool) -> Capability:
    package = _package("Triton kernels", "triton", "triton", "triton")
    device = "" if in_torch else "torch has no CUDA device (a build of torch for CUDA, on a machine with a GPU)"
    reason = "; ".join(filter(None, (package.reason, device)))
    return Capability(package.name, not reason, reason, "" if reason else package.found)


def _tensorrt(gpu: bool) -> Capability:
    """What builds and runs engines; its package comes from NVIDIA, so no extra installs it."""
    package = "" if importlib.util.find_spec("tensorrt") else "tensorrt is not installed (pip install tensorrt)"
    reason = "; ".join(filter(None, (package, _no_gpu(gpu))))
    return Capability("TensorRT engines", not reason, reason, "" if reason else _version("tensorrt") or "tensorrt")


def _program(name: str, program: str, source: str) -> Capability:
    found = shutil.which(program)
    return Capability(name, found is not None, "" if found else f"no {program} on the PATH ({source})", found or "")


def _trtexec(gpu: bool) -> Capability:
    tool = shutil.which("trtexec")
    missing = "" if tool else "no trtexec on the PATH (it comes with NVIDIA's TensorRT, not with its Python package)"
    reason = "; ".join(filter(None, (missing, _no_gpu(gpu))))
    return Capability("trtexec", not reason, reason, "" if reason else str(tool))


def cxx_compiler() -> tuple[str, str]:
    """(path of the C++ compiler that Inductor calls, why there is none); one of the two is empty."""
    wanted = os.environ.get("CXX") or _COMPILERS.get(platform.system(), "g++")
    found = shutil.which(wanted)
    return (found, "") if found else ("", f"no C++ compiler {wanted!r} (apt install g++, or name one in $CXX)")


def _compile() -> Capability:
    """Inductor compiles C++ that includes Python.h."""
    compiler, reason = cxx_compiler()
    if reason:
        return Capability("torch.compile", False, reason)
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        return Capability("torch.compile", False, "no Python.h for the C++ compiler (apt install python3-dev)")
    return Capability("torch.compile", True, "", compiler)


def _package(name: str, distribution: str, module: str, extra: str | None) -> Capability:
    """A package that an extra of gatefx installs, or that has an environment of its own and needs none."""
    # A module alone does not say it: gatefx itself has a folder in Optimum's.
    if importlib.util.find_spec(module) is None or (extra is None and not _version(distribution)):
        install = distribution if extra is None else f"'gatefx[{extra}]'"
        return Capability(name, False, f"{distribution} is not installed (pip install {install})")
    return Capability(name, True, "", _version(distribution) or "a version that says nothing of itself")


def _version(distribution: str) -> str:
    """Its version; empty where it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""
