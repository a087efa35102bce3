"""export onnx --generate: a decoder's adapter folder becomes two programs that generate the library's tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import BertTokenizerFast, LlamaConfig, LlamaForCausalLM

import gatefx as library
from gatefx.tools.model_folder import open_model_folder
from gatefx.tools.model_loading import example_batch, load_gated, load_tokenizer

from .conftest import WORDS

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def decoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base, adapter = tmp_path_factory.mktemp("decoder"), tmp_path_factory.mktemp("decoder_adapter")
    (base / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    names = ["input_ids", "attention_mask"]
    BertTokenizerFast(vocab=str(base / "vocab.txt"), model_input_names=names).save_pretrained(base)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=64, bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(base)
    model = LlamaForCausalLM.from_pretrained(base)
    lora = LoraConfig(r=4, task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(model, lora).save_pretrained(adapter)
    return adapter


def test_every_rank_generates_the_tokens_of_the_peft_model(
    gatefx: Command, decoder_folder: Path, data_file: Path, tmp_path: Path
) -> None:
    from peft import AutoPeftModelForCausalLM

    out = tmp_path / "out"
    code, _, err = gatefx("export", "onnx", decoder_folder, out, "--data", data_file, "--budget", "100%", "--generate")
    assert (code, err) == (0, "")
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    mask = torch.ones_like(ids)
    found = library.generate(library.load(out), ids, mask, max_new_tokens=8).tokens
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
