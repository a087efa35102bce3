"""Folders that vLLM may serve, and the reason for each that it may not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

import gatefx
from gatefx.errors import ArtifactError, SiteError
from gatefx.methods import CCM, MaskLoRA
from gatefx.models.tiny import tiny, tiny_decoder, tiny_inputs
from gatefx.runtime.serving.vllm_adapters import check_adapter


def saved(folder: Path, family: Any, **options: Any) -> Path:
    torch.manual_seed(0)
    config = LoraConfig(**{"r": 4, "target_modules": ["q_proj", "v_proj"], **options})
    get_peft_model(family, config).save_pretrained(folder)
    return folder


def test_plain_adapters_pass_with_their_largest_rank(tmp_path: Path) -> None:
    llama = tiny_decoder("llama")
    assert check_adapter(saved(tmp_path / "plain", llama, rank_pattern={"layers.0.self_attn.q_proj": 6})) == 6
    classifier = saved(tmp_path / "head", tiny("bert"), target_modules=["query"], task_type="SEQ_CLS")
    assert check_adapter(classifier) == 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"modules_to_save": ["embed_tokens"]}, "embed_tokens"),
        ({"modules_to_save": ["lm_head"]}, "lm_head"),
        ({"use_dora": True}, "use_dora"),
    ],
)
def test_what_vllm_does_not_take_is_refused(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(SiteError, match=words):
        check_adapter(saved(tmp_path / "adapter", tiny_decoder("llama"), **options))


def test_biases_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "adapter", tiny("bert"), target_modules=["query"], bias="lora_only", task_type=None)
    with pytest.raises(SiteError, match=r'base_layer\.bias[\s\S]*bias="none"'):
        check_adapter(folder)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (CCM(rank=4), "runs every rank of an adapter"),
        (MaskLoRA(rank=4, keep={1: 0.5}), r"masklora[\s\S]*cuts its graph at every attention"),
    ],
)
def test_gates_are_refused_and_not_left_out(method: Any, words: str, tmp_path: Path) -> None:
    budget = 2 if isinstance(method, CCM) else 0.5
    gated = gatefx.prepare(tiny("bert"), method, budget, example_inputs=tiny_inputs("bert", 4, 9))
    gated.save_pretrained(tmp_path / "gates")
    with pytest.raises(SiteError, match=words):
        check_adapter(tmp_path / "gates")


def test_what_is_no_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot be read"):
        check_adapter(tmp_path)
