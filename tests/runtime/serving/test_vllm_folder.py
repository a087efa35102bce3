"""Folders of gated models for vLLM: what they hold, what is refused, and token for token what gatefx generates.

For the interpreter with vLLM see `test_vllm_plugin.py`.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import gatefx
from gatefx.errors import ArtifactError, SiteError
from gatefx.methods import CCM, TSPEFT, GateRA
from gatefx.runtime.artifact import Artifact
from gatefx.runtime.serving.vllm_folder import write_vllm_folder

PYTHON = os.environ.get("GATEFX_VLLM_PYTHON", "")
READER = Path(__file__).with_name("vllm_gated_reader.py")
PROMPTS = [[5, 6, 7, 8, 9], [11, 3], [200, 40, 7, 150, 33, 21, 90]]
SITES = ("q_proj", "v_proj", "up_proj", "down_proj")
CONFIGS = {
    "gatera": (GateRA(rank=4, target_modules=SITES), 0.5),
    "tspeft": (TSPEFT(rank=4, target_modules=SITES), None),
}


def base_model(root: Path) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=320, hidden_size=128, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(root / "base")
    return root / "base"


def deployed(base: Path, config: Any, budget: Any) -> Any:
    ids = torch.randint(1, 320, (4, 9))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    gated = gatefx.prepare(LlamaForCausalLM.from_pretrained(base), config, budget, example_inputs=batch)
    with torch.no_grad():
        for name, parameter in gated.named_parameters():
            if "lora_B" in name or "hira_B" in name:
                parameter.normal_(std=0.2)
    return gatefx.optimize(gated.eval(), data=[batch], progress=False)


def test_the_folder_holds_the_base_model_and_a_program_a_site(tmp_path: Path) -> None:
    base = base_model(tmp_path)
    fast = deployed(base, *CONFIGS["tspeft"])
    folder = write_vllm_folder(fast, base, tmp_path / "out")
    names = {path.name for path in folder.iterdir()}
    assert {f"update_{site.name}.pt2" for site in fast.sites} <= names
    assert {"config.json", "model.safetensors", "gatefx.json"} <= names
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["GatefxLlamaForCausalLM"]
    manifest = Artifact.open(folder).manifest
    assert (manifest["kind"], manifest["backend"], list(manifest["methods"])) == ("vllm model", "vllm", ["tspeft"])


def test_routers_and_other_architectures_are_refused_and_leave_no_folder(tmp_path: Path) -> None:
    base = base_model(tmp_path)
    with pytest.raises(SiteError, match="no function of each token"):
        write_vllm_folder(deployed(base, CCM(rank=4, target_modules=SITES), 2), base, tmp_path / "out")
    fast = deployed(base, *CONFIGS["tspeft"])
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"architectures": ["OtherForCausalLM"]}))
    with pytest.raises(ArtifactError, match="some architectures"):
        write_vllm_folder(fast, base, tmp_path / "out")
    with pytest.raises(ArtifactError, match="cannot be read"):
        write_vllm_folder(fast, tmp_path / "nowhere", tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"base"}


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON, reason="no interpreter with vLLM is named: make vllm-checks, or GATEFX_VLLM_PYTHON")
@pytest.mark.parametrize("method", CONFIGS)
def test_vllm_generates_the_same_tokens_with_gates(method: str, tmp_path: Path) -> None:
    base = base_model(tmp_path)
    fast = deployed(base, *CONFIGS[method])
    folder = write_vllm_folder(fast, base, tmp_path / "out")
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    alone |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    answers = tmp_path / "answers.json"
    call = [PYTHON, str(READER), str(folder), json.dumps(PROMPTS), str(answers)]
    done = subprocess.run(call, capture_output=True, text=True, env=alone, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    plain = LlamaForCausalLM.from_pretrained(base)
    differ = False
    for prompt, served in zip(PROMPTS, json.loads(answers.read_text()), strict=True):
        ids = torch.tensor([prompt])
        expected = gatefx.generate(fast, ids, torch.ones_like(ids), max_new_tokens=8, stop=()).tokens
        assert served == torch.as_tensor(expected)[0].tolist()
        differ |= served != plain.generate(ids, max_new_tokens=8, do_sample=False)[0, len(prompt) :].tolist()
    assert differ
