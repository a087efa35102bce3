"""The files that an engine is built from: profiles as JSON, the same as arguments of trtexec, and a script."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from gatefx.runtime.tensorrt import build_engine
from gatefx.runtime.tensorrt.build_files import Profile, shell_script, write_build_files

PROFILE: Profile = {
    "ids": {"min": [1, 2], "opt": [4, 8], "max": [16, 32]},
    "an image": {"min": [1, 3, 8, 8], "opt": [4, 3, 8, 8], "max": [16, 3, 8, 8]},
}


def test_the_profile_is_written_as_it_is(tmp_path: Path) -> None:
    write_build_files(tmp_path, PROFILE)
    assert json.loads((tmp_path / "profiles.json").read_text()) == {"profiles": [PROFILE]}
    assert (tmp_path / "build_engine.py").read_text() == Path(build_engine.__file__).read_text()
    assert os.access(tmp_path / "build_engine.sh", os.X_OK)


def test_trtexec_gets_one_argument_per_bound_whatever_the_names(tmp_path: Path) -> None:
    """The script is run, with a stand-in that writes down its arguments."""
    tool = tmp_path / "trtexec"
    tool.write_text('#!/bin/sh\npwd\nprintf "%s\\n" "$@"\n')
    tool.chmod(0o755)
    folder = tmp_path / "a folder"
    folder.mkdir()
    write_build_files(folder, PROFILE)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = [folder / "build_engine.sh", "--verbose"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout.splitlines() == [
        str(folder),
        "--onnx=model.onnx",
        "--saveEngine=model.engine",
        "--stronglyTyped",
        "--skipInference",
        "--minShapes=ids:1x2,an image:1x3x8x8",
        "--optShapes=ids:4x8,an image:4x3x8x8",
        "--maxShapes=ids:16x32,an image:16x3x8x8",
        "--verbose",
    ]


def test_a_model_with_plugins_needs_their_library(tmp_path: Path) -> None:
    tool = tmp_path / "trtexec"
    tool.write_text('#!/bin/sh\nprintf "%s\\n" "$GATEFX_KERNELS" "$@"\n')
    tool.chmod(0o755)
    write_build_files(tmp_path, {}, plugins=True)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = [tmp_path / "build_engine.sh", "--verbose"]

    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd="/")
    assert (done.returncode != 0, done.stdout) == (True, "")
    assert "GATEFX_PLUGIN_LIBRARY" in done.stderr
    assert "build_engine.py" in done.stderr

    environment["GATEFX_PLUGIN_LIBRARY"] = "/some where/lib.so"
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd="/")
    kernels, *arguments = done.stdout.splitlines()
    assert kernels == str(tmp_path / "plugins")
    assert arguments[-2:] == ["--dynamicPlugins=/some where/lib.so", "--verbose"]


def test_without_open_axes_there_is_no_profile(tmp_path: Path) -> None:
    write_build_files(tmp_path, {})
    assert json.loads((tmp_path / "profiles.json").read_text()) == {"profiles": []}
    assert "Shapes" not in shell_script({})
