"""Engines in a repository: copied as they are, and refused with the reason where Triton could not serve them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gatefx.errors import ArtifactError, InputError
from gatefx.runtime.artifact import ArtifactWriter
from gatefx.runtime.manifest import BUILT_LATER
from gatefx.runtime.serving.options import ServeOptions
from gatefx.runtime.serving.triton_repository import Repository, write_repository


def engine_folder(path: Path, *, least: int = 1, most: int = 32, plugins: Any = (), built: bool = True) -> Path:
    """What a TensorRT export leaves, as far as it matters here, and the engine that its script would write."""
    described = {"methods": {}, "budget": 1, "inputs": ["input_ids"], "outputs": ["logits"], "axes": {}}
    sizes = {"batch": {"least": least, "usual": most, "most": most}}
    with ArtifactWriter(path) as writer:
        further = {"plugins": list(plugins), "remains": "model.engine: run it", BUILT_LATER: ["model.engine"]}
        writer.commit({"kind": "model", "backend": "tensorrt", "sizes": sizes, **described, **further})
    if built:
        (path / "model.engine").write_bytes(b"plan")
    return path


def test_an_engine_and_its_configuration_are_written(tmp_path: Path) -> None:
    options = ServeOptions(replicas=2, max_batch=16, wait_ms=2.5)
    written = write_repository(engine_folder(tmp_path / "out"), Repository(tmp_path / "models", "reviews"), options)
    files = {path.relative_to(written).as_posix() for path in written.rglob("*") if path.is_file()}
    assert files == {"config.pbtxt", "1/model.plan"}
    assert (written / "1" / "model.plan").read_bytes() == b"plan"
    text = (written / "config.pbtxt").read_text()
    for line in ('platform: "tensorrt_plan"', "max_batch_size: 16", "count: 2", "max_queue_delay_microseconds: 2500"):
        assert line in text


def test_the_configuration_is_triton_s(tmp_path: Path) -> None:
    config = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="tritonclient is not installed here")
    from google.protobuf import text_format

    written = write_repository(engine_folder(tmp_path / "out"), Repository(tmp_path / "models", "reviews"))
    parsed = text_format.Parse((written / "config.pbtxt").read_text(), config.ModelConfig())
    assert (parsed.platform, parsed.instance_group[0].kind) == (
        "tensorrt_plan",
        config.ModelInstanceGroup.Kind.Value("KIND_GPU"),
    )


def test_an_engine_that_is_not_built_says_how(tmp_path: Path) -> None:
    folder = engine_folder(tmp_path / "out", built=False)
    with pytest.raises(ArtifactError, match="not built") as caught:
        write_repository(folder, Repository(tmp_path / "models", "reviews"))
    assert "run it" in caught.value.remedy
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("facts", "asked", "reason"),
    [
        ({"most": 4}, {}, "batches up to 4, and max_batch is 8"),
        ({"least": 2}, {}, "batches from 2 on"),
        ({"plugins": [{"operator": "GatedLora"}]}, {}, "nodes of plugins"),
        ({}, {"ragged": True}, "cannot pad"),
    ],
)
def test_what_triton_could_not_serve_is_refused(
    facts: dict[str, Any], asked: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    folder = engine_folder(tmp_path / "out", **facts)
    with pytest.raises(InputError) as caught:
        write_repository(folder, Repository(tmp_path / "models", "reviews"), **asked)
    assert reason in caught.value.given
    assert not (tmp_path / "models").exists()
