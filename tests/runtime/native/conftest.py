"""The native libraries, built once for all workers of a test run; without a compiler these tests are skipped."""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from gatefx.runtime.native.build import build_native
from gatefx.runtime.native.library import NativeLibrary
from gatefx.runtime.native.places import FILES, SWITCH


@pytest.fixture(scope="session")
def native_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the libraries."""
    missing = [name for name in ("cmake", "c++") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"no native kernels without {' and '.join(missing)}")
    own = tmp_path_factory.getbasetemp()
    # Each worker has a folder of its own in the run's.
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    folder = shared / "native-libraries"
    with (shared / "native-libraries.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not all((folder / name).is_file() for name in FILES.values()):
            build_native(folder)
    return folder


@pytest.fixture
def native(native_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same folder, where gatefx finds it during this test."""
    monkeypatch.setenv(SWITCH, str(native_folder))
    return native_folder


ISAS = ("baseline", "neon") if platform.machine() in ("aarch64", "arm64") else ("baseline", "avx2", "avx512")


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, native_folder: Path) -> Iterator[str]:
    """Each instruction set that this machine has, in both libraries."""
    import torch

    torch.ops.load_library(str(native_folder / FILES["torch"]))
    libraries = [NativeLibrary(native_folder / name) for name in FILES.values()]
    before = [library.isa for library in libraries]
    if request.param not in libraries[0].isas:
        pytest.skip(f"this machine lacks {request.param}")
    for library in libraries:
        assert library.use_isa(request.param)
    yield request.param
    for library, name in zip(libraries, before, strict=True):
        library.use_isa(name)
