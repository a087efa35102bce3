"""export onnx --adapter: adapters from the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import gatefx as library
from gatefx.errors import InputError
from gatefx.tools.compiling import parse_adapters

Command = Callable[..., tuple[int, str, str]]


def test_adapters_are_a_name_and_a_folder() -> None:
    assert parse_adapters(None) is None
    assert parse_adapters(["a=out/a", "b=x=y"]) == {"a": Path("out/a"), "b": Path("x=y")}
    for odd in (["a"], ["=out"], ["a="], ["a=x", "a=y"]):
        with pytest.raises(InputError, match="a name and a folder"):
            parse_adapters(odd)


def test_an_adapter_is_exported_beside_the_models_own(
    gatefx: Command, adapter_folder: Path, base_folder: Path, data_file: Path, tmp_path: Path
) -> None:
    from peft import AutoPeftModelForSequenceClassification, LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(5)
    config = LoraConfig(r=2, task_type="SEQ_CLS", target_modules=["query"], init_lora_weights=False)
    base = AutoModelForSequenceClassification.from_pretrained(base_folder)
    get_peft_model(base, config).save_pretrained(tmp_path / "other")
    code, _, err = gatefx(
        "export", "onnx", adapter_folder, tmp_path / "out", "--data", data_file, "--budget", "100%", "--no-fold",
        "--adapter", f"other={tmp_path / 'other'}",
    )  # fmt: skip
    assert (code, err) == (0, "")
    session = library.load(tmp_path / "out")
    ids = torch.tensor([[3, 4, 5], [6, 7, 8]])
    batch = {
        "input_ids": ids, "token_type_ids": torch.zeros_like(ids), "attention_mask": torch.ones_like(ids),
    }  # fmt: skip
    for name, folder in ((None, adapter_folder), ("other", tmp_path / "other")):
        model = AutoPeftModelForSequenceClassification.from_pretrained(folder).eval()
        found = session.run(batch, adapter=name)["logits"]  # type: ignore[call-arg, union-attr]  # OnnxSession's own
        with torch.no_grad():
            np.testing.assert_allclose(found, model(**batch).logits.numpy(), rtol=0, atol=1e-4)
