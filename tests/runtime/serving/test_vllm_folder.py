"""Folders of gated models for vLLM: what they hold, what is refused, and token for token what gatefx generates.

For the interpreter with vLLM see `test_vllm_plugin.py`.
"""

from __future__ import annotations

import json
import os
import shutil
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
from gatefx.runtime.serving.vllm_files import DIGEST, PASSES
from gatefx.runtime.serving.vllm_folder import write_vllm_folder

PYTHON = os.environ.get("GATEFX_VLLM_PYTHON", "")
READER = Path(__file__).with_name("vllm_gated_reader.py")
SEEN = Path(__file__).with_name("vllm_seen_passes.py")
EAGER, COMPILED = {"enforce_eager": True}, {"enforce_eager": False}
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


def test_the_configuration_tells_other_programs_apart(tmp_path: Path) -> None:
    base = base_model(tmp_path)
    fast = deployed(base, *CONFIGS["gatera"])
    digests = []
    for budget in (0.5, 0.25):
        fast.budget = budget
        folder = write_vllm_folder(fast, base, tmp_path / "out", overwrite=True)
        digests.append(json.loads((folder / "config.json").read_text())[DIGEST])
    assert digests[0] != digests[1]


class Served:
    """A folder in vLLM, with a cache of compiled code of its own.

    Args:
        root: where a folder `out` is, what vLLM keeps, and what passes say.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(self, **options: Any) -> subprocess.CompletedProcess[str]:
        """Generate into a file under the root; `options` of vllm.LLM."""
        # Not this process's path: it would show that interpreter the packages of this one.
        (self.root / "path").mkdir(exist_ok=True)
        shutil.copy(SEEN, self.root / "path")
        alone = os.environ | {
            "PYTHONPATH": str(self.root / "path"), "GATEFX_SEEN": str(self.root), "HF_HUB_OFFLINE": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CACHE_ROOT": str(self.root / "cache"),
        }  # fmt: skip
        call = [PYTHON, str(READER), str(self.root / "out"), json.dumps(PROMPTS), json.dumps(options)]
        answers = str(self.root / "answers.json")
        return subprocess.run([*call, answers], capture_output=True, text=True, env=alone, check=False, cwd=self.root)

    def tokens(self, **options: Any) -> list[list[int]]:
        """What it generates."""
        done = self.run(**options)
        assert done.returncode == 0, done.stderr[-4000:]
        tokens: list[list[int]] = json.loads((self.root / "answers.json").read_text())
        return tokens

    def compiled(self) -> set[str]:
        """The keys under which vLLM keeps compiled models."""
        return {path.parts[-3] for path in (self.root / "cache" / "torch_compile_cache").rglob("rank_0_0/model")}


def generated(fast: Any) -> list[list[int]]:
    """What gatefx generates for the prompts."""
    return [
        torch.as_tensor(
            gatefx.generate(fast, torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.int64), max_new_tokens=8,
                            stop=()).tokens
        )[0].tolist()
        for ids in PROMPTS
    ]  # fmt: skip


needs_vllm = pytest.mark.skipif(
    not PYTHON, reason="no interpreter with vLLM is named: make vllm-checks, or GATEFX_VLLM_PYTHON"
)


@pytest.mark.slow
@needs_vllm
@pytest.mark.parametrize("method", CONFIGS)
def test_vllm_generates_the_same_tokens_with_gates_eager_and_compiled(method: str, tmp_path: Path) -> None:
    base = base_model(tmp_path)
    fast = deployed(base, *CONFIGS[method])
    write_vllm_folder(fast, base, tmp_path / "out")
    served, expected = Served(tmp_path), generated(fast)
    assert served.tokens(**EAGER) == expected
    assert not served.compiled()
    for _ in range(2):  # the second time with kernels that it kept: vLLM 0.32 loads no whole graph on a CPU
        assert served.tokens(**COMPILED) == expected
        assert len(served.compiled()) == 1
    plain = LlamaForCausalLM.from_pretrained(base)
    ungated = [
        plain.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False)[0, len(ids) :].tolist()
        for ids in PROMPTS
    ]
    assert ungated != expected


@pytest.mark.slow
@needs_vllm
def test_passes_run_in_vllms_compilation_and_key_its_cache(tmp_path: Path) -> None:
    base = base_model(tmp_path)
    fast = deployed(base, *CONFIGS["tspeft"])
    write_vllm_folder(fast, base, tmp_path / "out")
    served, expected = Served(tmp_path), generated(fast)
    for number, option in enumerate(("first", "second"), start=1):
        assert served.tokens(additional_config={PASSES: f"vllm_seen_passes:{option.upper()}"}) == expected
        seen = json.loads((tmp_path / option).read_text())
        # One graph for all layers: a sum a site, and the products of its A and B.
        assert seen["sums"] >= len(fast.sites)
        assert seen["products"] >= 2 * len(fast.sites)
        assert len(served.compiled()) == number
    refused = served.run(additional_config={PASSES: "vllm_seen_passes:FIRST"}, **EAGER)
    assert refused.returncode != 0
    assert "by Inductor, which is off" in refused.stderr + refused.stdout
