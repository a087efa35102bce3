"""export onnx --generate: a decoder's adapter folder becomes two programs that generate the library's tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

import gatefx as library
from gatefx.tools.model_folder import open_model_folder
from gatefx.tools.model_loading import example_batch, load_gated, load_tokenizer

Command = Callable[..., tuple[int, str, str]]


def test_every_rank_generates_the_tokens_of_the_peft_model(decoder_folder: Path, decoder_artifact: Path) -> None:
    from peft import AutoPeftModelForCausalLM

    ids = torch.tensor([[5, 6, 7, 8, 9]])
    mask = torch.ones_like(ids)
    found = library.generate(library.load(decoder_artifact), ids, mask, max_new_tokens=8).tokens
    model = AutoPeftModelForCausalLM.from_pretrained(decoder_folder).eval()
    wanted = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=8, do_sample=False)[:, 5:]
    with model.disable_adapter():
        without = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=8, do_sample=False)[:, 5:]
    assert without.tolist() != wanted.tolist()  # else the tokens would say nothing of the adapter
    assert torch.as_tensor(found).tolist() == wanted.tolist()


def test_fitted_gates_act_in_both_programs(
    gatefx: Command, decoder_folder: Path, data_file: Path, tmp_path: Path
) -> None:
    """Gates that the command fits decide in the artifact: it generates what the library deploys from the same gates."""
    fitted, out = tmp_path / "fitted", tmp_path / "out"
    options = ("--data", data_file, "--method", "tspeft", "--budget", "50%")
    code, _, err = gatefx("optimize", decoder_folder, fitted, *options)
    assert (code, err) == (0, "")
    code, _, err = gatefx("export", "onnx", fitted, out, "--data", data_file, "--generate")
    assert (code, err) == (0, "")
    session = library.load(out)
    assert session.manifest["methods"]["tspeft"]["budget"] == 0.5
    shares = [site["update_share"] for site in session.manifest["sites"]]
    assert 0.4 < sum(shares) / len(shares) < 0.6
    ids = [[5, 6, 7, 8, 9], [10, 11, 12]]
    folder = open_model_folder(fitted)
    gated = load_gated(folder, example_batch(load_tokenizer(folder)))
    wanted = library.generate(library.optimize(gated, progress=False), ids, max_new_tokens=8, stop=())
    found = library.generate(session, ids, max_new_tokens=8, stop=())
    assert torch.equal(found.tokens, wanted.tokens)


def test_an_encoder_is_refused(gatefx: Command, gates_folder: Path, tmp_path: Path) -> None:
    code, _, err = gatefx("export", "onnx", gates_folder, tmp_path / "out", "--generate")
    assert code == 2
    assert "The model cannot generate." in err
    assert not (tmp_path / "out").exists()


def test_fixed_caches_and_prompts_in_parts_are_written_on_request(
    gatefx: Command, decoder_folder: Path, decoder_artifact: Path, data_file: Path, tmp_path: Path
) -> None:
    export = ("export", "onnx", decoder_folder, tmp_path / "out", "--data", data_file, "--budget", "100%")
    code, _, err = gatefx(*export, "--generate", "--static")
    assert (code, err) == (0, "")
    said = [
        gatefx("generate", folder, "the film was good", "--max-tokens", 5)
        for folder in (tmp_path / "out", decoder_artifact)
    ]
    assert said[0][:2] == said[1][:2]
    for switches in (("--static",), ("--parts",), ("--generate", "--static", "--parts"), ("--generate", "--cache")):
        code, _, err = gatefx(*export, *switches)
        assert (code, "--" in err) == (2, True), switches
