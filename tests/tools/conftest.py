"""A tiny BERT with its tokenizer on disk, adapters and gates over it, and a file of sentences."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gatefx.tools.cli import app

WORDS = ("the", "a", "film", "plot", "actor", "scene", "is", "was", "not", "very", "good", "bad", "dull", "fine")


@pytest.fixture(scope="session")
def gatefx() -> Callable[..., tuple[int, str, str]]:
    """The command, run in this process: arguments → (exit code, standard output, standard error)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        return result.exit_code, result.stdout, result.stderr

    return run


def sentence(source: random.Random) -> str:
    return " ".join(source.choices(WORDS, k=source.randint(3, 12)))


@pytest.fixture(scope="session")
def texts() -> list[str]:
    source = random.Random(0)
    return [sentence(source) for _ in range(40)]


@pytest.fixture(scope="session")
def data_file(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    path = tmp_path_factory.mktemp("data") / "texts.txt"
    path.write_text("\n".join(texts), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    folder = tmp_path_factory.mktemp("base")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    config = BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=64, num_labels=3,
    )  # fmt: skip
    torch.manual_seed(0)
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def adapter_folder(tmp_path_factory: pytest.TempPathFactory, base_folder: Path) -> Path:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_pretrained(base_folder)
    config = LoraConfig(r=8, lora_alpha=16, task_type="SEQ_CLS", target_modules="all-linear", init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def gates_folder(tmp_path_factory: pytest.TempPathFactory, base_folder: Path, texts: list[str]) -> Path:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from gatefx import prepare
    from gatefx.models.configs.ccm import CCM
    from gatefx.models.packaged_text import batches
    from gatefx.tools.training import train

    torch.manual_seed(2)
    model = AutoModelForSequenceClassification.from_pretrained(base_folder)
    batched = batches(AutoTokenizer.from_pretrained(base_folder), texts, [len(t) % 3 for t in texts], batch_size=8)
    example = {name: tensor for name, tensor in batched[0].items() if name != "labels"}
    gated = prepare(model, CCM(rank=8, alpha=16), budget=3, example_inputs=example)
    train(gated, batched * 2, show=False)
    return gated.save_pretrained(tmp_path_factory.mktemp("gates") / "trained")


@pytest.fixture(scope="session")
def decoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with its tokenizer, and a LoRA on it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import BertTokenizerFast, LlamaConfig, LlamaForCausalLM

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


@pytest.fixture(scope="session")
def decoder_artifact(
    gatefx: Callable[..., tuple[int, str, str]],
    decoder_folder: Path,
    data_file: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Prefill and decode of it, every rank kept, as the command exports them."""
    out = tmp_path_factory.mktemp("decoder_artifact") / "out"
    options = ("--data", data_file, "--budget", "100%", "--generate")
    code, _, err = gatefx("export", "onnx", decoder_folder, out, *options)
    assert (code, err) == (0, "")
    return out
