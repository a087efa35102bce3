"""generate: the command says what `gatefx.generate` says, and why it cannot."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

import gatefx as library
from gatefx.runtime.artifact import ArtifactWriter
from gatefx.runtime.manifest import DESCRIBED
from gatefx.tools.cli import app

Command = Callable[..., tuple[int, str, str]]

_PROMPTS = ("the film was good", "a dull plot")


def said(folder: Path, prompts: tuple[str, ...], **options: object) -> list[str]:
    """The texts that the library generates."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    tokens = library.generate(library.load(folder), ids, **options).tokens  # type: ignore[arg-type]
    return [tokenizer.decode(row, skip_special_tokens=True) for row in tokens]


def test_one_prompt_is_printed_as_text(gatefx: Command, decoder_artifact: Path) -> None:
    code, out, err = gatefx("generate", decoder_artifact, _PROMPTS[0], "--max-tokens", 7)
    assert (code, out.strip()) == (0, said(decoder_artifact, _PROMPTS[:1], max_new_tokens=7)[0])
    assert "6 tokens read" in err
    assert "cache" in err


def test_standard_input_is_a_prompt(gatefx: Command, decoder_artifact: Path) -> None:
    arguments = ["generate", str(decoder_artifact), "-", "--max-tokens", "4"]
    result = CliRunner().invoke(app, arguments, input=_PROMPTS[1])
    assert (result.exit_code, result.stdout) == gatefx("generate", decoder_artifact, _PROMPTS[1], "--max-tokens", 4)[:2]


def test_several_prompts_and_drawn_tokens(gatefx: Command, decoder_artifact: Path) -> None:
    options = ("--max-tokens", 5, "--temperature", 0.8, "--top-k", 9, "--top-p", 0.9, "--seed", 3)
    wanted = said(decoder_artifact, _PROMPTS, max_new_tokens=5, temperature=0.8, top_k=9, top_p=0.9, seed=3)
    code, out, _ = gatefx("generate", decoder_artifact, *_PROMPTS, *options)
    assert (code, out.splitlines()) == (0, [f"[{number}] {text}" for number, text in enumerate(wanted, 1)])
    code, out, err = gatefx("generate", decoder_artifact, *_PROMPTS, *options, "--json")
    result = json.loads(out)
    assert (code, err) == (0, "")
    assert [row["text"] for row in result["generated"]] == wanted
    assert [row["prompt"] for row in result["generated"]] == list(_PROMPTS)
    assert {row["tokens"] for row in result["generated"]} == {5}
    assert (result["prefill"]["tokens"], result["decode"]["calls"]) == (11, 4)


def test_prompts_in_parts_and_caches_of_fixed_size(gatefx: Command, decoder_artifact: Path, tmp_path: Path) -> None:
    plain = ("generate", decoder_artifact, _PROMPTS[0], "--max-tokens", 6)
    assert gatefx(*plain, "--chunk", 2)[:2] == gatefx(*plain)[:2]
    code, _, err = gatefx(*plain, "--max-cache-len", 8)
    assert (code, "static" in err) == (2, True)


def test_saved_gates_generate_in_torch(gatefx: Command, decoder_folder: Path, data_file: Path, tmp_path: Path) -> None:
    fitted = tmp_path / "fitted"
    options = ("--method", "tspeft", "--budget", "50%", "--distill-steps", 2)
    code, _, err = gatefx("optimize", decoder_folder, fitted, "--data", data_file, *options)
    assert (code, err) == (0, "")
    code, out, err = gatefx("generate", fitted, *_PROMPTS, "--max-tokens", 3, "--budget", "100%", "--data", data_file)
    assert code == 0, err
    assert [line[:4] for line in out.splitlines()] == ["[1] ", "[2] "]
    code, _, err = gatefx("generate", fitted, _PROMPTS[0], "--budget", "0%", "--data", data_file)
    assert (code, "budget" in err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "There is no prompt"),
        (("the film", " "), "prompt 2"),
        (("the film", "--max-tokens", 100), "past the model's positions"),
        (("the film", "--top-k", 3), "at temperature 0"),
        (("the film", "--temperature", -1), "temperature is out of range"),
        (("the film", "--budget", "25%"), "budget of this artifact is fixed"),
        (("the film", "--base", "elsewhere"), "no data and no base model"),
    ],
)
def test_what_cannot_be_is_said(
    gatefx: Command, decoder_artifact: Path, arguments: tuple[object, ...], complaint: str
) -> None:
    code, out, err = gatefx("generate", decoder_artifact, *arguments)
    assert (code, out) == (2, "")
    assert complaint in err


def test_folders_that_do_not_generate_are_refused(
    gatefx: Command, decoder_folder: Path, decoder_artifact: Path, tmp_path: Path
) -> None:
    code, _, err = gatefx("generate", tmp_path / "missing", "the film")
    assert (code, "no model folder" in err) == (2, True)
    code, _, err = gatefx("generate", decoder_folder, "the film")
    assert (code, "gatefx optimize MODEL OUT" in err) == (2, True)
    edited = shutil.copytree(decoder_artifact, tmp_path / "edited")
    (edited / "decode.onnx").write_bytes(b"")
    code, _, err = gatefx("generate", edited, "the film")
    assert (code, "decode.onnx" in err) == (2, True)


def test_an_exported_model_over_whole_texts_is_refused(gatefx: Command, tmp_path: Path) -> None:
    with ArtifactWriter(tmp_path / "out", overwrite=False) as writer:
        writer.commit({**{field: {} for field in DESCRIBED}, "kind": "model"})
    code, _, err = gatefx("generate", tmp_path / "out", "the film")
    assert (code, "--generate" in err) == (2, True)
