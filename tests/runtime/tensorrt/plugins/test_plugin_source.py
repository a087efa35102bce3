"""The plugins in C++: that they ship, agree with the Python ones, and, where TensorRT's headers are, that they work.

No package registry has the headers: GATEFX_TENSORRT_INCLUDE names their folder. Those of CUDA come with Triton.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gatefx.runtime.tensorrt.plugin_files import OPERATORS, SOURCES
from gatefx.runtime.tensorrt.plugins.kernels import Kernel, written_table

CHECK, STAND_IN = (Path(__file__).with_name(name) for name in ("library_check.cpp", "driver_stand_in.cpp"))
TENSORRT_INCLUDE = os.environ.get("GATEFX_TENSORRT_INCLUDE", "")
needs_headers = pytest.mark.skipif(
    not TENSORRT_INCLUDE or importlib.util.find_spec("triton") is None or shutil.which("g++") is None,
    reason="GATEFX_TENSORRT_INCLUDE does not name TensorRT's headers, or triton or g++ is missing: "
    "the C++ plugins are not compiled",
)
KERNELS = [
    Kernel("GatedLora", "fp16", 45, 67, 17, 1, 128, 6144, 32, 64, "gated_lora_kernel", "gated.ptx"),
    Kernel("TokenGatedLora", "fp32", 45, 67, 17, 1, 128, 8192, 32, 64, "token_gated_lora_kernel", "token.ptx"),
    Kernel("RoutedRows", "bf16", 45, 130, 0, 1, 256, 4096, 32, 64, "routed_linear_kernel", "routed.ptx"),
]
#: What `library_check.cpp` launches for a batch of 3 × 100 tokens: grid, threads, shared memory, and the integer.
LAUNCHES = {
    "GatedLora": "gated_lora_kernel 4 3 1 128 1 1 6144 100",
    "TokenGatedLora": "token_gated_lora_kernel 10 1 1 128 1 1 8192 300",
    "RoutedRows": "routed_linear_kernel 10 3 1 256 1 1 4096 300",
}


def test_the_sources_name_the_operators_and_fields_of_python() -> None:
    operators = (SOURCES / "operators.h").read_text()
    assert re.findall(r'^ {4}\{"(\w+)"', operators, re.M) == list(OPERATORS)
    for operator, module in zip(OPERATORS, ("gated_lora", "token_gated_lora", "routed_rows"), strict=True):
        text = (SOURCES.parent / "plugins" / f"{module}.py").read_text()
        inputs = re.search(r"def launch\(\s*(.*?), outputs, tactic", text, re.S)
        comment = re.search(rf'// (.*)\n {{4}}\{{"{operator}", "(\w+)"', operators)
        assert inputs is not None
        assert comment is not None
        assert len(comment[2]) == len(inputs[1].split(", ")) == len(comment[1].split(", "))
    header = (SOURCES / "kernel_table.h").read_text()
    (struct,) = re.findall(r"struct Kernel \{(.*?)\};", header, re.S)
    fields = [name.strip() for line in re.findall(r"(?:string|int32_t) ([^;]*);", struct) for name in line.split(",")]
    assert [{"op": "operator"}.get(name, name) for name in fields] == list(Kernel.__dataclass_fields__)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the library, a driver that writes down what it is asked, and a program that plays TensorRT."""
    folder = tmp_path_factory.mktemp("built")
    cuda = Path(importlib.import_module("triton").__file__ or "").parent / "backends" / "nvidia" / "include"
    flags = ["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-isystem", TENSORRT_INCLUDE, "-isystem", str(cuda)]
    library = [*flags, "-fPIC", "-shared", "-fvisibility=hidden", *map(str, sorted(SOURCES.glob("*.cpp"))), "-ldl"]
    for command in (
        [*library, "-o", str(folder / "libgatefx_tensorrt.so")],
        [*flags, "-fPIC", "-shared", str(STAND_IN), "-o", str(folder / "libcuda.so.1")],
        [*flags, str(CHECK), "-o", str(folder / "check"), "-ldl"],
    ):
        subprocess.run(command, check=True)
    (folder / "kernels.tsv").write_text(written_table(KERNELS))
    for kernel in KERNELS:
        (folder / kernel.file).write_text(f"text of {kernel.file}")
    return folder


def check(built: Path, kernels: Path, operator: str, *, rank: int) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LD_LIBRARY_PATH": str(built), "GATEFX_KERNELS": str(kernels)}
    command = [str(built / "check"), str(built / "libgatefx_tensorrt.so"), operator, str(rank)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@needs_headers
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.operator)
def test_an_engine_keeps_its_kernel_and_launches_it_as_python_says(built: Path, kernel: Kernel) -> None:
    done = check(built, built, kernel.operator, rank=kernel.rank)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == [
        f"output 3 100 {kernel.d_out}",
        f"loaded text of {kernel.file}",
        f"launched {LAUNCHES[kernel.operator]}",
        "pointers in order",
        "unloaded",
    ]


@needs_headers
def test_what_is_wrong_is_said_and_not_thrown(built: Path, tmp_path: Path) -> None:
    for kernels, rank, said in (
        (built, 16, "no kernel of GatedLora for fp16 and d_in 45, d_out 67, rank 16"),
        (tmp_path, 17, f"cannot read {tmp_path}/kernels.tsv"),
    ):
        done = check(built, kernels, "GatedLora", rank=rank)
        assert (done.returncode, done.stdout) == (3, "output 3 100 67\n")
        assert "gatefx::GatedLora: " in done.stderr
        assert said in done.stderr


@needs_headers
@pytest.mark.skipif(importlib.util.find_spec("tensorrt_lean") is None, reason="tensorrt-lean is not installed here")
def test_the_library_loads_into_a_real_registry_without_a_driver(built: Path) -> None:
    code = """
import sys, tensorrt_lean as trt
registry = trt.get_plugin_registry()
registry.load_library(sys.argv[1])
for name in sys.argv[2:]:
    creator = registry.get_creator(name, "1", "gatefx")
    plugin = creator.create_plugin(name, trt.PluginFieldCollection([]), trt.TensorRTPhase.BUILD)
    print(creator.name, plugin.get_capability_interface(trt.PluginCapabilityType.BUILD).num_outputs)
"""
    command = [sys.executable, "-c", code, str(built / "libgatefx_tensorrt.so"), *OPERATORS]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{name} 1" for name in OPERATORS]
