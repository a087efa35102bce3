"""Files of adapters: what a run takes is what was written, and what is none is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from gatefx.errors import ArtifactError, InputError
from gatefx.runtime.artifact import ArtifactWriter
from gatefx.runtime.sessions.onnxruntime_adapters import Adapters, write_adapter

DESCRIPTION = {"methods": {}, "budget": None, "inputs": [], "outputs": [], "axes": {}}


def written(folder: Path, content: bytes | None = None) -> Adapters:
    with ArtifactWriter(folder) as writer:
        if content is None:
            write_adapter(writer.path / "a.onnx_adapter", {"w": np.arange(6, dtype=np.float32).reshape(2, 3).T})
        else:
            (writer.path / "a.onnx_adapter").write_bytes(content)
        return Adapters.of(writer.commit({**DESCRIPTION, "adapters": {"a": "a.onnx_adapter"}}))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    adapters = written(tmp_path / "out")
    assert adapters.names == ("a",)
    assert adapters.options(None) is None
    assert isinstance(adapters.options("a"), onnxruntime.RunOptions)
    stored = onnxruntime.AdapterFormat.read_adapter(str(tmp_path / "out" / "a.onnx_adapter")).get_parameters()
    np.testing.assert_array_equal(stored["w"].numpy(), np.arange(6, dtype=np.float32).reshape(2, 3).T)


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'b'[\s\S]*expected: a"):
        written(tmp_path / "out").options("b")
    with pytest.raises(InputError, match="an artifact with adapters"):
        Adapters({}).check("b")


def test_what_is_no_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not read"):
        written(tmp_path / "out", b"no adapter")
