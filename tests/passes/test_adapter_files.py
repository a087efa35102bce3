"""Adapters of a deployed model as plain LoRA: PEFT computes the same, and what still decides is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

import gatefx
from gatefx.config import AdapterConfig
from gatefx.errors import ArtifactError, SiteError
from gatefx.methods import CCM, TSPEFT, GateRA, WeightLoRA
from gatefx.models.tiny import tiny, tiny_decoder, tiny_inputs
from gatefx.passes.deployed import DeployedModel
from gatefx.passes.gated import GatedModel

from ..sampling import rest_slow_rows

BUDGETS: dict[str, tuple[AdapterConfig, float]] = {
    "weightlora": (WeightLoRA(rank=4), 6),
    "every rank": (CCM(rank=4), 4),
    "ccm": (CCM(rank=4), 2),
    "tspeft": (TSPEFT(rank=4), 0.5),
    "gatera": (GateRA(rank=4), 0.5),
}


@cache
def trained(name: str) -> tuple[GatedModel, dict[str, torch.Tensor]]:
    """Tiny BERT, trained for a few steps with large updates, head included, and its data. Leave it as it is."""
    config, budget = BUDGETS[name]
    batch = tiny_inputs("bert", 4, 9)
    gated = gatefx.prepare(tiny("bert"), config, budget, example_inputs=batch)
    for parameter_name, parameter in gated.named_parameters():
        if "lora_B" in parameter_name:
            torch.nn.init.normal_(parameter, std=0.2)
    optimiser = torch.optim.AdamW([p for p in gated.parameters() if p.requires_grad], lr=1e-2)
    schedule = gated.schedule(6, optimiser)
    gated.train()
    for _ in range(6):
        gated(**batch, labels=torch.arange(4) % 2).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
    return gated, batch


def deployed(name: str, *, fold: bool | None = None) -> DeployedModel:
    gated, batch = trained(name)
    return gatefx.optimize(gated, data=[batch], fold=fold, progress=False)


@pytest.mark.parametrize("name", ["weightlora", "every rank"])
def test_peft_computes_the_same(name: str, tmp_path: Path, tolerance: dict[torch.dtype, float]) -> None:
    fast = deployed(name, fold=False)
    folder = fast.save_adapter(tmp_path / "adapter")
    adapted = PeftModel.from_pretrained(tiny("bert"), str(folder)).eval()

    for batch, tokens in ((1, 3), (4, 9)):
        given = tiny_inputs("bert", batch, tokens)
        expected = fast(**given)["logits"]
        with torch.no_grad():
            found = adapted(**given).logits
            base = tiny("bert").eval()(**given).logits
        torch.testing.assert_close(found, expected, rtol=0, atol=tolerance[torch.float32])
        assert (expected - base).abs().max() > 1e-2
    kept = [site.name for site in fast.sites if site.form == "lora"]
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["target_modules"] == kept
    assert {module for module, _ in adapted.named_modules() if module.endswith(".lora_A.default")} == {
        f"base_model.model.{path}.lora_A.default" for path in kept
    }
    assert len(kept) == {"weightlora": 6, "every rank": len(fast.sites)}[name]


STRANGER = """
import sys, numpy, torch
from peft import AutoPeftModelForCausalLM
model = AutoPeftModelForCausalLM.from_pretrained(sys.argv[1]).eval()
with torch.no_grad():
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    numpy.save(sys.argv[2], model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.numpy())
assert not [name for name in sys.modules if name.startswith("gatefx")]
"""


@pytest.mark.slow
def test_a_process_without_gatefx_computes_the_same_of_a_decoder(tmp_path: Path) -> None:
    """Ranks and scales that differ by layer, whole layers without an adapter."""
    tiny_decoder("llama").save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    config = LoraConfig(
        r=8, lora_alpha=4, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM",
        rank_pattern={"layers.1.self_attn.q_proj": 3}, alpha_pattern={"down_proj": 9}, init_lora_weights=False,
    )  # fmt: skip
    batch = tiny_inputs("llama", 4, 9)
    model = get_peft_model(base, config).eval()
    fast = gatefx.optimize(model, WeightLoRA(rank=8), 4, data=[batch], fold=False, progress=False)
    folder = fast.save_adapter(tmp_path / "adapter")
    call = [sys.executable, "-c", STRANGER, str(folder), str(tmp_path / "logits.npy")]
    done = subprocess.run(call, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    found = torch.from_numpy(np.load(tmp_path / "logits.npy"))
    expected = fast(input_ids=ids, attention_mask=torch.ones_like(ids))["logits"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert (expected - tiny_decoder("llama")(input_ids=ids).logits).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("name", "words"),
    rest_slow_rows([("ccm", "HardRankRouter"), ("tspeft", "token_gated_lora"), ("gatera", "routed")], 2),
)
def test_what_still_decides_is_refused(name: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(SiteError, match="no plain LoRA") as caught:
        deployed(name).save_adapter(tmp_path / "adapter")
    assert words in str(caught.value)
    assert not (tmp_path / "adapter").exists()


def test_merged_adapters_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match="fold=False"):
        deployed("every rank", fold=True).save_adapter(tmp_path / "adapter")


def test_a_folder_is_not_overwritten_unasked(tmp_path: Path) -> None:
    fast = deployed("weightlora")
    fast.save_adapter(tmp_path / "adapter")
    with pytest.raises(ArtifactError):
        fast.save_adapter(tmp_path / "adapter")
    fast.save_adapter(tmp_path / "adapter", overwrite=True)


@pytest.mark.parametrize(
    ("biases", "budget", "word"),
    rest_slow_rows([("lora_only", 4, "lora_only"), ("lora_only", 2, "all"), ("all", 4, "all")], 2),
)
def test_trained_biases_are_saved(
    biases: str, budget: int, word: str, tmp_path: Path, tolerance: dict[torch.dtype, float]
) -> None:
    """Also those of layers whose adapter was dropped: only "all" makes PEFT keep them when it saves again."""
    config = LoraConfig(r=4, target_modules=["query", "value"], bias=biases, task_type="SEQ_CLS")  # type: ignore[arg-type]
    model = get_peft_model(tiny("bert"), config)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and (name.endswith(".bias") or "lora_B" in name):
            torch.nn.init.normal_(parameter, std=0.2)
    model.eval().save_pretrained(tmp_path / "trained")
    opened = PeftModel.from_pretrained(tiny("bert"), str(tmp_path / "trained")).eval()  # nothing trains any more
    batch = tiny_inputs("bert", 4, 9)
    fast = gatefx.optimize(opened, WeightLoRA(rank=4), budget, data=[batch], fold=False, progress=False)
    folder = fast.save_adapter(tmp_path / "kept")

    again = PeftModel.from_pretrained(tiny("bert"), str(folder)).eval()
    with torch.no_grad():
        torch.testing.assert_close(
            again(**batch).logits, fast(**batch)["logits"], rtol=0, atol=tolerance[torch.float32]
        )
    assert json.loads((folder / "adapter_config.json").read_text())["bias"] == word
