"""The command line: what it is made of, how little its help imports, and what it says to what it cannot do."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from gatefx import __version__
from gatefx.tools.cli import app

Command = Callable[..., tuple[int, str, str]]

COMPILING = {
    "--base", "--batch-size", "--budget", "--data", "--debug", "--distill-steps", "--fold", "--forms",
    "--freeze-static", "--json", "--max-length", "--method", "--overwrite", "--text-column",
}  # fmt: skip
OPTIONS = {
    ("export", "onnx"): COMPILING | {"--opset", "--generate", "--static", "--parts", "--adapter", "--cache"},
    ("export", "tensorrt"): COMPILING | {"--check", "--plugins", "--precision", "--size", "--through"},
    ("export", "triton"): {
        "--debug",
        "--instances",
        "--max-batch",
        "--mount",
        "--name",
        "--ragged",
        "--threads",
        "--wait-ms",
    },
    ("optimize",): COMPILING,
    ("inspect",): {
        "--base",
        "--data",
        "--debug",
        "--html",
        "--json",
        "--max-length",
        "--sparsity",
        "--text",
        "--text-column",
    },
    ("generate",): {
        "--base",
        "--budget",
        "--chunk",
        "--data",
        "--debug",
        "--evict-every",
        "--json",
        "--max-cache-len",
        "--max-tokens",
        "--seed",
        "--temperature",
        "--threads",
        "--top-k",
        "--top-p",
    },
    ("serve",): {
        "--adapter",
        "--debug",
        "--drain",
        "--host",
        "--longest",
        "--max-batch",
        "--measure-every",
        "--port",
        "--provider",
        "--replicas",
        "--threads",
        "--wait-ms",
    },
    ("doctor",): {"--debug", "--json"},
    ("build-native",): {"--debug"},
    ("demo",): {"--debug", "--fast", "--out", "--overwrite", "--seed"},
}


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


def test_commands_and_flags_are_the_promised_ones() -> None:
    root = typer.main.get_command(app)
    assert set(root.commands) == {
        "build-native",
        "demo",
        "doctor",
        "export",
        "generate",
        "inspect",
        "optimize",
        "serve",
    }
    assert set(root.commands["export"].commands) == {"onnx", "tensorrt", "triton"}
    for path, options in OPTIONS.items():
        command = root
        for name in path:
            command = command.commands[name]
        found = {option.opts[0] for option in command.params if option.opts[0].startswith("--")}
        assert found == options, path


@pytest.mark.parametrize("path", [(), ("export",), *OPTIONS])
def test_every_command_has_a_help(gatefx: Command, path: tuple[str, ...]) -> None:
    code, out, _ = gatefx(*path, "--help")
    assert code == 0
    assert "Usage: " in out


@pytest.mark.parametrize("arguments", [["--help"], ["export", "onnx", "--help"], ["--version"]])
def test_help_and_version_import_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; from gatefx.tools.cli import app; app(sys.argv[1:], standalone_mode=False); "
        "heavy = {'torch', 'numpy', 'transformers', 'onnxruntime', 'matplotlib', 'sympy'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = python("-c", code, *arguments)
    assert done.returncode == 0, done.stderr


def test_version(gatefx: Command) -> None:
    assert gatefx("--version") == (0, f"gatefx {__version__}\n", "")


def test_usage_errors_exit_with_2(gatefx: Command) -> None:
    assert gatefx("export", "onnx")[0] == 2
    assert gatefx("optimize", "a", "b", "--batch-size", "1")[0] == 2
    assert gatefx("no-such-command")[0] == 2


def test_an_interrupt_exits_with_130(gatefx: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gatefx.tools.inspecting.describe", interrupted)
    assert gatefx("inspect", tmp_path)[0] == 130


@pytest.mark.parametrize("budget", ["0", "-1", "9", "nan", "6 %", "1.5", "six", "inf", "0.01"])
def test_a_senseless_budget_is_refused_by_the_library(
    gatefx: Command, adapter_folder: Path, tmp_path: Path, budget: str
) -> None:
    code, out, err = gatefx("export", "onnx", adapter_folder, tmp_path / "out", f"--budget={budget}")
    assert (code, out) == (2, "")
    assert "budget=" in err
    assert "an integer from 1 to 8" in err
    assert not (tmp_path / "out").exists()


def test_bad_input_says_what_to_do(
    gatefx: Command, base_folder: Path, adapter_folder: Path, tmp_path: Path, data_file: Path
) -> None:
    out = tmp_path / "out"
    for arguments, said in [
        ((tmp_path / "nowhere", out), "no model folder"),
        ((base_folder, out), "gatefx.prepare"),
        ((adapter_folder, out), "--data FILE"),
        ((adapter_folder, out, "--method", "magic"), "no method 'magic'"),
        ((adapter_folder, out, "--data", tmp_path / "no.txt"), "no data file"),
        ((adapter_folder, tmp_path, "--data", data_file), "--overwrite"),
        ((adapter_folder, out, "--data", data_file, "--base", tmp_path / "no-base"), "--base FOLDER"),
    ]:
        code, printed, err = gatefx("export", "onnx", *arguments)
        assert (code, printed) == (2, ""), arguments
        assert said in err, arguments
    assert not out.exists()


def test_inspect_refuses_what_is_no_artifact(gatefx: Command, tmp_path: Path) -> None:
    code, out, err = gatefx("inspect", tmp_path)
    assert (code, out) == (2, "")
    assert "not a gatefx artifact" in err
