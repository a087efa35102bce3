"""`optimum-cli export gatefx`, run by Optimum's own entry point."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import gatefx

REGISTER = Path(__file__).parents[2] / "tools" / "optimum_register" / "register_gatefx.py"
PLACE = Path("optimum", "commands", "register")


def has_optimum() -> bool:
    """Whether the distribution is here: gatefx's own file makes a package of that name without it."""
    try:
        importlib.metadata.version("optimum")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


pytestmark = pytest.mark.skipif(not has_optimum(), reason="optimum is not installed here: make optimum-checks")


def optimum(scratch: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """The command, with the file where a wheel puts it; Optimum refuses to read two of them."""
    installed = any((Path(entry) / PLACE / REGISTER.name).is_file() for entry in sys.path)
    if not installed:
        (scratch / PLACE).mkdir(parents=True, exist_ok=True)
        shutil.copy(REGISTER, scratch / PLACE)
    path = os.pathsep.join(filter(None, (str(scratch), os.environ.get("PYTHONPATH"))))
    call = [sys.executable, "-m", "optimum.commands.optimum_cli", "export", "gatefx", *map(str, arguments)]
    return subprocess.run(call, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path})


def test_a_peft_adapter_becomes_a_folder(adapter_folder: Path, data_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--method", "ccm", "--budget", "2", "--data", data_file, "--distill-steps", "2"]
    done = optimum(tmp_path, "--model", adapter_folder, *options, out)
    assert done.returncode == 0, done.stderr
    manifest = gatefx.load(out).manifest
    assert (list(manifest["methods"]), manifest["budget"]) == (["ccm"], 2)
    again = optimum(tmp_path, "--model", adapter_folder, *options, out)
    assert again.returncode == 2
    assert "overwrite" in again.stderr


def test_options_are_stated(tmp_path: Path) -> None:
    shown = optimum(tmp_path, "--help")
    assert shown.returncode == 0
    for option in ("--model", "--method", "--budget", "--data", "--opset", "--cache", "--overwrite"):
        assert option in shown.stdout
    assert optimum(tmp_path, tmp_path / "out").returncode == 2
