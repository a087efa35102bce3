"""A hardened adapter in vLLM, found by the plugin: token for token what gatefx generates.

`GATEFX_VLLM_PYTHON` names an interpreter with vLLM and gatefx, of another environment than this one: vLLM wants an
older transformers. `make vllm-checks` makes one.
"""

from __future__ import annotations

import json
import os
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

import gatefx
from gatefx.methods import CCM, WeightLoRA

PYTHON = os.environ.get("GATEFX_VLLM_PYTHON", "")
READER = Path(__file__).with_name("vllm_reader.py")
ROOT = Path(__file__).resolve().parents[3]
PROMPTS = [[5, 6, 7, 8, 9], [11, 3], [200, 40, 7, 150, 33, 21, 90]]


def test_the_entry_point_names_the_plugin() -> None:
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["vllm.general_plugins"]
    module, _, name = points["gatefx"].partition(":")
    file = ROOT.joinpath(*module.split(".")[1:]).with_suffix(".py")
    assert f"def {name}()" in file.read_text()


def served(root: Path) -> Any:
    """A base model and its adapters under `root`; the deployed model of adapters/kept."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=320, hidden_size=128, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(root / "base")
    lora = LoraConfig(
        r=8, lora_alpha=4, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM",
        rank_pattern={"layers.1.self_attn.q_proj": 3}, init_lora_weights=False,
    )  # fmt: skip
    ids = torch.randint(1, 320, (4, 9))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    model = get_peft_model(LlamaForCausalLM.from_pretrained(root / "base"), lora).eval()
    fast = gatefx.optimize(model, WeightLoRA(rank=8), 4, data=[batch], fold=False, progress=False)
    fast.save_adapter(root / "adapters" / "kept")
    gated = gatefx.prepare(LlamaForCausalLM.from_pretrained(root / "base"), CCM(rank=4), 2, example_inputs=batch)
    gated.save_pretrained(root / "adapters" / "gates")
    return fast


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON, reason="no interpreter with vLLM is named: make vllm-checks, or GATEFX_VLLM_PYTHON")
def test_vllm_generates_the_same_tokens_and_refuses_gates(tmp_path: Path) -> None:
    fast = served(tmp_path)
    # Not this process's path: it would show that interpreter the packages of this one.
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    alone |= {
        "GATEFX_VLLM_ADAPTERS": str(tmp_path / "adapters"), "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    answers = tmp_path / "answers.json"
    names = ["kept", "gates", "absent", "../base"]
    call = [PYTHON, str(READER), str(tmp_path / "base"), json.dumps(PROMPTS), str(answers), *names]
    done = subprocess.run(call, capture_output=True, text=True, env=alone, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(answers.read_text())
    for prompt, adapted, base in zip(PROMPTS, found["adapted"], found["base"], strict=True):
        ids = torch.tensor([prompt])
        expected = gatefx.generate(fast, ids, torch.ones_like(ids), max_new_tokens=8, stop=()).tokens
        assert adapted == torch.as_tensor(expected)[0].tolist()
        assert adapted != base
    assert "would run it without its gates" in found["refused"]["gates"]
    assert found["refused"]["absent"] == found["refused"]["../base"] == "no such adapter"
