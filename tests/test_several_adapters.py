"""PEFT models with several adapters: the active ones are gated, and nothing of the others is deployed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gatefx
from gatefx.errors import SiteError
from gatefx.models.configs.gatera import GateRA
from gatefx.models.tiny import tiny, tiny_inputs

from .sampling import rest_slow, rest_slow_rows

peft = pytest.importorskip("peft")

DATA = [tiny_inputs("bert", batch=4, tokens=7, seed=seed) for seed in range(2)]
CASES: list[tuple[Any, str, int, int]] = [
    ("ccm", "default", 8, 4),
    (GateRA(update="lora"), "other", 4, 2),
    ("ccm", "other", 4, 2),
    (GateRA(update="lora"), "default", 8, 4),
    ("weightlora", "default", 8, 4),
    ("weightlora", "other", 4, 2),
]


def two_adapters(active: str | list[str]) -> nn.Module:
    """A BERT with the adapters "default" (r=8 on query and value) and "other" (r=4 on key)."""
    model = peft.get_peft_model(tiny("bert"), peft.LoraConfig(r=8, target_modules=["query", "value"]))
    model.add_adapter("other", peft.LoraConfig(r=4, target_modules=["key"]))
    model.base_model.set_adapter(active)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.mark.parametrize(("method", "active", "rank", "count"), rest_slow_rows(CASES, 2))
def test_the_active_adapter_alone_is_gated(method: Any, active: str, rank: int, count: int) -> None:
    model = two_adapters(active)
    fast = gatefx.optimize(model, method, data=DATA, distill_steps=2, progress=False)

    assert len(fast.sites) == count
    assert {site.rank for site in fast.sites} == {rank}
    sleeping = "other" if active == "default" else "default"
    assert not [name for name in fast.state_dict() if f".{sleeping}." in name]


@pytest.mark.parametrize("active", rest_slow(["default", ["default", "other"], "other"], 2))
def test_open_gates_are_the_active_adapters_bit_for_bit(active: Any) -> None:
    model = two_adapters(active)
    gated = gatefx.prepare(model, "ccm", budget="100%", example_inputs=DATA[0])
    opened = gatefx.optimize(gated)

    with torch.no_grad():
        assert torch.equal(opened(**DATA[1]).logits, model(**DATA[1]).logits)
        model.base_model.set_adapter("other" if active == "default" else "default")
        assert not torch.equal(opened(**DATA[1]).logits, model(**DATA[1]).logits), "it is a copy of what was active"


def test_gates_come_back_over_the_model_with_the_same_adapter_active(tmp_path: Path) -> None:
    gated = gatefx.prepare(two_adapters("other"), "ccm", budget=2, example_inputs=DATA[0]).eval()
    gated.save_pretrained(tmp_path / "gates")
    again = gatefx.from_pretrained(two_adapters("other"), tmp_path / "gates", example_inputs=DATA[0]).eval()

    assert torch.equal(again(**DATA[1]).logits, gated(**DATA[1]).logits)


def test_no_active_adapter_is_refused() -> None:
    model = two_adapters("default")
    model.base_model.disable_adapter_layers()
    with pytest.raises(SiteError, match="merged or disabled"):
        gatefx.optimize(model, "ccm", data=DATA)
