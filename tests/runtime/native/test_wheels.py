"""Wheels of Python alone and with kernels, as pip makes them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from gatefx.runtime.native import places
from gatefx.runtime.native.places import FILES, SWITCH

ROOT = Path(__file__).parents[3]
LIBRARIES = {f"gatefx/runtime/native/libraries/{file}" for file in FILES.values()}
OPEN = """
import torch
from gatefx.runtime.native.library import native_status
from gatefx.runtime.native.places import FILES, PACKAGED
for runtime, file in FILES.items():
    status = native_status(runtime)
    assert status.active, status
    assert status.library == PACKAGED / file, status
"""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is under version control, so that nothing built before is found again."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("the checkout's files are listed by git, which is not here")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    copy = tmp_path_factory.mktemp("sources")
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file() and not name.startswith(("tests/", "benchmarks/")):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    return copy


def wheel_of(sources: Path, out: Path, *settings: str) -> Path:
    """Made of what this environment has: what a build needs is not looked for elsewhere."""
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "wheel", str(sources), *options, "--wheel-dir", str(out), *settings]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = out.iterdir()
    return made


def test_a_wheel_is_python_alone_unless_asked(sources: Path, tmp_path: Path) -> None:
    made = wheel_of(sources, tmp_path / "out")
    names = set(zipfile.ZipFile(made).namelist())
    assert made.name.endswith("-py3-none-any.whl")
    assert {"gatefx/loading.py", "gatefx/runtime/native/CMakeLists.txt"} <= names
    assert not [name for name in names if name.endswith(".so") or "wheel_backend" in name]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_a_wheel_with_kernels_runs_them_where_nothing_is_built(sources: Path, tmp_path: Path) -> None:
    made = wheel_of(sources, tmp_path / "out", "-C", "native=true")
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert made.name.endswith(f"-py3-none-{platform}.whl")
    with zipfile.ZipFile(made) as wheel:
        assert set(wheel.namelist()) >= LIBRARIES
        wheel.extractall(tmp_path / "installed")
    own = {name: value for name, value in os.environ.items() if name not in (SWITCH, "PYTHONPATH")}
    own |= {"PYTHONPATH": str(tmp_path / "installed"), "GATEFX_CACHE": str(tmp_path / "empty")}
    done = subprocess.run(
        [sys.executable, "-c", OPEN], env=own, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_what_was_built_goes_before_what_came_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "PACKAGED", tmp_path / "packaged")
    monkeypatch.setenv("GATEFX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(SWITCH, raising=False)
    built = places.build_folder()
    assert places.library_folder() == built
    (tmp_path / "packaged").mkdir()
    assert places.library_folder() == tmp_path / "packaged"
    built.mkdir(parents=True)
    assert places.library_folder() == built
    monkeypatch.setenv(SWITCH, str(tmp_path / "named"))
    assert places.library_folder() == tmp_path / "named"
