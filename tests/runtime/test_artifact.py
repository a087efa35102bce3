from __future__ import annotations

import json
from pathlib import Path

import pytest

from gatefx.errors import ArtifactError
from gatefx.runtime.artifact import Artifact, ArtifactWriter

DESCRIPTION = {
    "methods": {"ccm": {}},
    "budget": 6,
    "inputs": [{"name": "input_ids", "dtype": "int64", "shape": ["batch", "sequence"]}],
    "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", 2]}],
    "axes": {"batch": [1, None], "sequence": [2, 128]},
    "sites": {3: ("query", 0.5)},
}


def write(folder: Path, content: bytes = b"weights", overwrite: bool = False) -> Artifact:
    with ArtifactWriter(folder, overwrite=overwrite) as writer:
        (writer.path / "model.onnx").write_bytes(content)
        (writer.path / "tokenizer").mkdir()
        (writer.path / "tokenizer" / "vocab.txt").write_text("a b c", encoding="utf-8")
        return writer.commit(DESCRIPTION)


def reseal_nothing(folder: Path, **changes: object) -> None:
    manifest = json.loads((folder / "gatefx.json").read_text(encoding="utf-8"))
    (folder / "gatefx.json").write_text(json.dumps({**manifest, **changes}), encoding="utf-8")


def test_what_was_written_is_what_is_opened(tmp_path: Path) -> None:
    written = write(tmp_path / "out")
    opened = Artifact.open(tmp_path / "out")
    assert opened == written
    assert opened.manifest["methods"] == {"ccm": {}}
    assert opened.manifest["sites"] == {"3": ["query", 0.5]}
    assert opened.manifest["files"]["tokenizer/vocab.txt"]["bytes"] == 5
    assert {"gatefx", "torch", "onnx"} <= set(opened.manifest["versions"])
    assert opened.file("model.onnx").read_bytes() == b"weights"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_file_that_is_not_listed_cannot_be_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no file 'other\.bin'"):
        write(tmp_path / "out").file("other.bin")


def test_an_exception_leaves_nothing_not_even_new_parents(tmp_path: Path) -> None:
    def failing() -> None:
        with ArtifactWriter(tmp_path / "new" / "deep" / "out") as writer:
            (writer.path / "model.onnx").write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        failing()
    assert list(tmp_path.iterdir()) == []


def test_leaving_without_commit_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="never committed"), ArtifactWriter(tmp_path / "out") as writer:
        (writer.path / "model.onnx").write_bytes(b"half")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "description",
    [
        {key: value for key, value in DESCRIPTION.items() if key != "budget"},
        {**DESCRIPTION, "files": {}},
        {**DESCRIPTION, "report": float("nan")},
        {**DESCRIPTION, "report": object()},
    ],
)
def test_a_bad_description_leaves_nothing(tmp_path: Path, description: dict[str, object]) -> None:
    def failing() -> None:
        with ArtifactWriter(tmp_path / "out") as writer:
            writer.commit(description)

    with pytest.raises(ArtifactError):
        failing()
    assert list(tmp_path.iterdir()) == []


def test_an_existing_target_is_refused_before_any_work(tmp_path: Path) -> None:
    write(tmp_path / "out", b"first")
    with pytest.raises(ArtifactError, match="exists"):
        ArtifactWriter(tmp_path / "out").__enter__()
    assert Artifact.open(tmp_path / "out").file("model.onnx").read_bytes() == b"first"


def test_overwrite_replaces_the_whole_folder(tmp_path: Path) -> None:
    write(tmp_path / "out", b"first")
    write(tmp_path / "out", b"second", overwrite=True)
    assert Artifact.open(tmp_path / "out").file("model.onnx").read_bytes() == b"second"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_failed_overwrite_keeps_the_old_artifact(tmp_path: Path) -> None:
    write(tmp_path / "out", b"first")

    def failing() -> None:
        with ArtifactWriter(tmp_path / "out", overwrite=True) as writer:
            (writer.path / "model.onnx").write_bytes(b"half")
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011  (raised three lines above)
        failing()
    assert Artifact.open(tmp_path / "out").file("model.onnx").read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_overwrite_deletes_no_folder_that_is_not_an_artifact(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("three years", encoding="utf-8")
    with pytest.raises(ArtifactError, match="no gatefx artifact"):
        write(tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "thesis.txt").exists()


def test_a_link_among_the_files_is_refused(tmp_path: Path) -> None:
    def failing() -> None:
        with ArtifactWriter(tmp_path / "out") as writer:
            (writer.path / "model.onnx").symlink_to("/dev/null")
            writer.commit(DESCRIPTION)

    with pytest.raises(ArtifactError, match="links"):
        failing()


def test_a_missing_folder_and_a_folder_without_manifest(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no artifact folder"):
        Artifact.open(tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match="not a gatefx artifact"):
        Artifact.open(tmp_path)


@pytest.mark.parametrize("verify", [True, False])
def test_missing_extra_and_truncated_files_are_named(tmp_path: Path, verify: bool) -> None:
    folder = tmp_path / "out"
    write(folder)
    model = folder / "model.onnx"
    model.write_bytes(b"weig")
    with pytest.raises(ArtifactError, match=r"'model\.onnx'.* truncated") as caught:
        Artifact.open(folder, verify=verify)
    assert "4 bytes" in str(caught.value)
    assert "7 bytes" in str(caught.value)
    model.unlink()
    with pytest.raises(ArtifactError, match=r"lacks the file 'model\.onnx'"):
        Artifact.open(folder, verify=verify)
    model.write_bytes(b"weights")
    (folder / "tokenizer" / "extra.bin").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"does not list: 'tokenizer/extra\.bin'"):
        Artifact.open(folder, verify=verify)


def test_an_edited_file_of_the_same_size_is_named_with_both_hashes(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    expected = write(folder).manifest["files"]["model.onnx"]["sha256"]
    (folder / "model.onnx").write_bytes(b"weighty")
    with pytest.raises(ArtifactError, match=r"'model\.onnx'.* changed") as caught:
        Artifact.open(folder)
    assert expected in str(caught.value)


@pytest.mark.parametrize("changes", [{"budget": 7}, {"manifest_sha256": "0" * 64}, {"manifest_sha256": None}])
def test_an_edited_manifest_is_noticed(tmp_path: Path, changes: dict[str, object]) -> None:
    write(tmp_path / "out")
    reseal_nothing(tmp_path / "out", **changes)
    with pytest.raises(ArtifactError, match="was edited"):
        Artifact.open(tmp_path / "out")


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"schema_version": 99}', "null", "\x00"])
def test_a_manifest_that_is_none(tmp_path: Path, content: str) -> None:
    write(tmp_path / "out")
    (tmp_path / "out" / "gatefx.json").write_text(content, encoding="utf-8")
    with pytest.raises(ArtifactError):
        Artifact.open(tmp_path / "out")
