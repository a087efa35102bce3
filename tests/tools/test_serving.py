"""What `gatefx serve` says where it cannot serve."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Command = Callable[..., tuple[int, str, str]]


def test_without_ray_it_says_which_extra_to_install(
    gatefx: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delitem(sys.modules, "gatefx.runtime.serving.ray_serve", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    code, out, err = gatefx("serve", tmp_path)
    assert (code, out) == (1, "")
    assert "'ray'" in err
    assert "pip install 'gatefx[serve]'" in err


@pytest.mark.parametrize("option", ["--replicas=0", "--max-batch=0", "--wait-ms=-1", "--port=0", "--threads=0"])
def test_senseless_options_are_usage_errors(gatefx: Command, tmp_path: Path, option: str) -> None:
    assert gatefx("serve", tmp_path, option)[0] == 2
