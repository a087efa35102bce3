from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gatefx.errors import MissingDependencyError
from gatefx.runtime.native import build, library
from gatefx.runtime.native.build import NativeBuildError, build_native
from gatefx.runtime.native.library import native_status
from gatefx.runtime.native.places import FILES, SOURCES, SWITCH, library_folder, source_digest

SERVING = """
import torch
from gatefx.runtime.native.torch_kernels import use_torch_kernels
from gatefx.runtime.ops.reference import gated_lora_reference
from gatefx.runtime.ops.schema import gated_lora
status = use_torch_kernels()
assert status.active, status
assert use_torch_kernels() is status
given = [torch.randn(2, 3, 5, requires_grad=True), torch.randn(2, 3, 4, requires_grad=True), torch.randn(2, 4),
         torch.randn(5, 2), torch.tensor([[1, -1], [-1, -1]]), torch.tensor(2.0)]
answer = gated_lora(*given)
torch.testing.assert_close(answer, gated_lora_reference(*given))
assert torch.equal(answer, torch.ops.gatefx_native.gated_lora(*given))
answer.sum().backward()
assert given[1].grad[1].abs().max() == 0 < given[1].grad[0].abs().max()
torch.library.opcheck(gated_lora, given)
assert "torch_binding" in torch._C._dispatch_dump("gatefx::token_gated_lora")
"""


def test_torch_operators_run_by_the_native_kernels_once_asked_for(native: Path) -> None:
    # A process of its own: what an operator runs by holds for the life of a process.
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", SERVING], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_is_there_says_what_it_is(native: Path) -> None:
    for runtime, file in FILES.items():
        status = native_status(runtime)
        assert status.active
        assert status.library == native / file
        assert status.isa in status.isas
        assert status.isas[-1] == "baseline"
        assert str(status) == f"native kernels ({status.isa})"


def test_every_no_has_its_reason(native: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = library.ABI_VERSION
    monkeypatch.setattr(library, "ABI_VERSION", 99)
    assert f"version {built}, this gatefx needs 99" in native_status("onnxruntime").reason
    monkeypatch.setenv(SWITCH, "0")
    assert "GATEFX_NATIVE=0" in native_status("onnxruntime").reason
    monkeypatch.setenv(SWITCH, str(tmp_path))
    assert "gatefx build-native" in native_status("onnxruntime").reason
    (tmp_path / FILES["onnxruntime"]).write_bytes(b"no library")
    broken = native_status("onnxruntime")
    assert not broken.active
    assert "does not load" in broken.reason
    assert broken.library == tmp_path / FILES["onnxruntime"]


def test_an_instruction_set_that_is_not_there_is_named(native: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(library.ISA, "abacus")
    status = native_status("onnxruntime")
    assert not status.active
    assert "GATEFX_ISA=abacus" in status.reason
    assert "baseline" in status.reason


def test_the_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SWITCH, raising=False)
    monkeypatch.delenv("GATEFX_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a"))
    assert library_folder() == tmp_path / "a" / "gatefx" / "native" / source_digest()
    monkeypatch.setenv("GATEFX_CACHE", str(tmp_path / "b"))
    assert library_folder() == tmp_path / "b" / "native" / source_digest()
    monkeypatch.setenv(SWITCH, str(tmp_path / "c"))
    assert library_folder() == tmp_path / "c"


def test_building_without_cmake_or_a_compiler_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build.shutil, "which", lambda *_, **__: None)
    with pytest.raises(MissingDependencyError, match=r"gatefx\[native\]"):
        build_native(tmp_path / "out")
    refusing = tmp_path / "cmake"
    monkeypatch.setattr(build.shutil, "which", lambda name, **_: str(refusing) if name == "cmake" else None)
    for words, kind in (("No CMAKE_CXX_COMPILER could be found.", MissingDependencyError), ("bad", NativeBuildError)):
        refusing.write_text(f"#!/bin/sh\necho '{words}'\nexit 1\n")
        refusing.chmod(0o755)
        with pytest.raises(kind):
            build_native(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_package_ships_every_source() -> None:
    shipped = {path for pattern in ("CMakeLists.txt", "*.h", "*/*.h", "*/*.cpp") for path in SOURCES.glob(pattern)}
    assert shipped == {path for path in SOURCES.rglob("*") if path.suffix in (".h", ".cpp", ".txt")}
