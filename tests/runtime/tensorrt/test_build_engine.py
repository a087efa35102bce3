"""The script that every folder for TensorRT holds, run as a person would, with the builder that needs no GPU."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from gatefx.runtime.tensorrt import build_engine
from gatefx.runtime.tensorrt.build_engine import RefusedError, build, register_plugins
from gatefx.runtime.tensorrt.build_files import write_build_files

needs_builder = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt-rtx is not installed here: no engine is built (pip install 'gatefx[tensorrt]')",
)
#: Runs a script where `tensorrt` is its sibling without GPU and `gatefx` cannot be imported.
RUN = """
import runpy, sys
sys.modules["gatefx"] = None
import tensorrt_rtx
sys.modules["tensorrt"] = tensorrt_rtx
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def folder_of(folder: Path, *, width: int) -> Path:
    """A model of one MatMul (n, 32) · (width, 16)."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="multiplies")],
        "one_product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 16])],
        [numpy_helper.from_array(np.ones((width, 16), np.float32), "w")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(proto, folder / "model.onnx")
    write_build_files(folder, {"x": {"min": [1, 32], "opt": [4, 32], "max": [8, 32]}})
    return folder


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", RUN, str(folder / "build_engine.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")


@needs_builder
def test_the_script_builds_the_engine(tmp_path: Path) -> None:
    done = run(folder_of(tmp_path, width=32))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "model.engine").stat().st_size > 0
    assert done.stdout.startswith(f"written: {tmp_path / 'model.engine'}")
    elsewhere = run(tmp_path, "--output", str(tmp_path / "other.engine"))
    assert elsewhere.returncode == 0, elsewhere.stderr
    assert (tmp_path / "other.engine").is_file()


@needs_builder
def test_a_refusal_is_told_and_leaves_no_engine(tmp_path: Path) -> None:
    before = {"build_engine.py", "build_engine.sh", "model.onnx", "profiles.json"}
    done = run(folder_of(tmp_path, width=31))
    assert done.returncode == 1
    assert "multiplies" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == before


@needs_builder
def test_a_node_that_becomes_no_plugin_is_refused(tmp_path: Path) -> None:
    trt = importlib.import_module("tensorrt_rtx")
    logger = trt.Logger(trt.Logger.ERROR)
    with pytest.raises(RefusedError, match="2 nodes have plugins, and 0 of them became one"):
        build(trt, logger, folder_of(tmp_path, width=32), plugins=2)


def test_plugins_that_cannot_be_registered_are_told(tmp_path: Path) -> None:
    assert register_plugins(tmp_path) == 0
    package = tmp_path / "plugins"
    package.mkdir()
    (package / "register.py").write_text(
        "def register_plugins(folder):\n    raise ValueError(f'no table in {folder}')\n"
    )
    code = (
        "import sys, runpy; build = runpy.run_path(sys.argv[1]); build['register_plugins'](build['Path'](sys.argv[2]))"
    )
    command = [sys.executable, "-c", code, build_engine.__file__, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert f"RefusedError: the plugins of {tmp_path} cannot be registered: no table in {package}" in done.stderr


def test_registering_plugins_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    package = tmp_path / "plugins"
    package.mkdir()
    (package / "register.py").write_text("def register_plugins(folder):\n    return 3\n")
    code = (
        "import sys, runpy; build = runpy.run_path(sys.argv[1]); "
        "print(build['register_plugins'](build['Path'](sys.argv[2])), sys.dont_write_bytecode)"
    )
    command = [sys.executable, "-c", code, build_engine.__file__, str(tmp_path)]
    own = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(command, env=own, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["3", "False"]
    assert [path.name for path in tmp_path.rglob("*")] == ["plugins", "register.py"]


def test_without_tensorrt_the_script_says_so(tmp_path: Path) -> None:
    script = folder_of(tmp_path, width=32) / "build_engine.py"
    code = "import runpy, sys; sys.modules['tensorrt'] = None; sys.argv = sys.argv[1:]; "
    command = [sys.executable, "-c", code + "runpy.run_path(sys.argv[0], run_name='__main__')", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "pip install tensorrt" in done.stderr
    assert "Traceback" not in done.stderr
