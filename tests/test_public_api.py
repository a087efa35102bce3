"""The front door: a guarded list of names, and nothing heavy behind it until it is asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

import gatefx
from gatefx.models.configs.catalogue import METHODS

PUBLIC = [
    "CCM",
    "GateCallback",
    "GatefxError",
    "capabilities",
    "export",
    "from_pretrained",
    "generate",
    "load",
    "methods",
    "optimize",
    "prepare",
]


def test_public_names_are_these() -> None:
    """A new name is a promise: change this list on purpose."""
    assert gatefx.__all__ == PUBLIC
    assert len(PUBLIC) <= 11
    assert set(PUBLIC) <= set(dir(gatefx))


@pytest.mark.parametrize("name", PUBLIC)
def test_every_name_is_there_and_documented(name: str) -> None:
    value = getattr(gatefx, name)

    assert value.__doc__


def test_every_method_has_its_config_under_one_name() -> None:
    configs = {type(config).__name__ for config in METHODS.values()}

    assert set(gatefx.methods.__all__) == configs | {"Flops"}  # a budget, which no method owns
    assert gatefx.methods.CCM is gatefx.CCM


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="optimise"):
        _ = gatefx.optimise


def test_importing_gatefx_imports_nothing_heavy() -> None:
    code = (
        "import sys, gatefx; gatefx.__version__; gatefx.CCM(); gatefx.methods.MaskLoRA(); gatefx.GatefxError;"
        "print([m for m in ('torch','transformers','peft','numpy','onnx','onnxruntime','sympy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
