"""Adapter folders read without PEFT: its numbers, and a refusal of whatever is not B A x."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from gatefx.errors import ArtifactError, SiteError
from gatefx.passes.plain_adapters import read_plain_adapter


class Two(nn.Module):
    """Two layers to adapt."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 4)


def saved(folder: Path, **options: Any) -> Any:
    """A PEFT model with random factors, and its folder."""
    torch.manual_seed(0)
    model = get_peft_model(Two(), LoraConfig(**{"r": 3, "target_modules": ["first", "second"], **options}))  # type: ignore[arg-type]  # a plain module
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    "options",
    [{}, {"use_rslora": True}, {"rank_pattern": {"second": 2}, "alpha_pattern": {"first": 5}, "lora_alpha": 7}],
)
def test_updates_are_those_of_peft(options: dict[str, Any], tmp_path: Path) -> None:
    model = saved(tmp_path, **options)
    found = read_plain_adapter(tmp_path)
    assert set(found.factors) == {"first", "second"}
    assert not found.beside
    for path, (lora_a, lora_b) in found.factors.items():
        layer = model.base_model.model.get_submodule(path)
        torch.testing.assert_close(lora_b @ lora_a, layer.get_delta_weight("default"))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"peft_type": "HIRA"}, "HIRA"),
        ({"lora_bias": True}, "lora_bias"),
        ({"init_lora_weights": "pissa"}, "changes the base model"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
    ],
)
def test_other_adapters_are_refused(changed: dict[str, Any], words: str, tmp_path: Path) -> None:
    saved(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    with pytest.raises(SiteError, match=words):
        read_plain_adapter(tmp_path)


def test_gates_are_not_left_out(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "gates.safetensors").touch()
    with pytest.raises(SiteError, match="gates that decide"):
        read_plain_adapter(tmp_path)


def test_what_is_no_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_plain_adapter(tmp_path)
    saved(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_plain_adapter(tmp_path)
