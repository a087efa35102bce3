"""Gates that were never trained are fitted on unlabelled data, alone, and the report says how near they come."""

from __future__ import annotations

import dataclasses
import json
import math
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

import gatefx
from gatefx.errors import UntrainedGateError
from gatefx.models.configs.catalogue import METHODS
from gatefx.models.gates import RankMask
from gatefx.models.hard_token_gate import HardTokenGate
from gatefx.models.modulation import HardModulation
from gatefx.models.tiny import tiny, tiny_inputs
from gatefx.models.update_threshold import HardUpdateThreshold
from gatefx.passes.deployed import DeployedModel
from gatefx.passes.methods.ccm_schedule import routers_of

peft = pytest.importorskip("peft")

DATA = [tiny_inputs("bert", batch=8, tokens=9, seed=seed) for seed in range(4)]
#: Half of what there is.
BUDGETS: dict[str, Any] = {"ccm": 4, "tspeft": 0.5, "gatera": 0.5, "masklora": 0.5, "weightlora": 3}
NAMES = [name for name in METHODS if name != "weightlora+"]
STEPS = 4


def lora() -> nn.Module:
    torch.manual_seed(0)
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value", "intermediate.dense"])
    model = peft.get_peft_model(tiny("bert"), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.2)
    return model.eval()


def config_of(name: str) -> Any:
    return dataclasses.replace(METHODS[name], update="lora") if name == "gatera" else METHODS[name]


@cache
def fitted(name: str) -> DeployedModel:
    return gatefx.optimize(lora(), config_of(name), BUDGETS[name], data=DATA, distill_steps=STEPS, progress=False)


@pytest.mark.parametrize("name", NAMES)
def test_the_report_says_how_near_fitted_gates_come(name: str) -> None:
    fast = fitted(name)
    quality = json.loads(json.dumps(fast.report.to_json()))["facts"]["fitted"][name]

    assert 0 <= quality["divergence"] < math.inf
    assert quality["budget"] == BUDGETS[name] == fast.budget
    assert quality["steps"] == (0 if name == "weightlora" else STEPS)
    assert 0 < quality["achieved"] < math.inf
    assert quality["unit"]
    assert f"{name}: gates fitted" in str(fast.report)


@pytest.mark.parametrize("name", NAMES)
def test_fitting_moves_gates_alone_and_shows_a_bar_where_it_is_asked_to(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []

    def track(bar: Any, items: Any, *, description: str, total: int | None) -> Any:
        shown.append(description)
        return items

    monkeypatch.setattr("gatefx.progress.Progress.track", track)
    model = lora()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fast = gatefx.optimize(model, config_of(name), BUDGETS[name], data=DATA, distill_steps=2, progress=True)

    assert shown
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    for batch in DATA:
        torch.testing.assert_close(fast(**batch).logits, fast.reference(**batch).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_without_data_untrained_gates_are_refused(name: str) -> None:
    with pytest.raises(UntrainedGateError, match="data="):
        gatefx.optimize(lora(), config_of(name), BUDGETS[name])


def test_several_methods_are_fitted_one_after_the_other() -> None:
    methods = [config_of(name) for name in ("weightlora", "ccm", "gatera")]
    fast = gatefx.optimize(lora(), methods, {"ccm": 4, "gatera": 0.5}, data=DATA, distill_steps=5, progress=False)

    assert list(fast.report.to_json()["facts"]["fitted"]) == ["weightlora", "ccm", "gatera"]


def test_trained_gates_are_not_fitted_again() -> None:
    gated = gatefx.prepare(lora(), "ccm", budget=4, example_inputs=DATA[0])
    schedule = gated.schedule(1)
    gated(**DATA[0], labels=torch.arange(8) % 2).loss.backward()
    schedule.step()

    assert "fitted" not in gatefx.optimize(gated, data=DATA).report.facts


def taken_by(fast: DeployedModel, name: str) -> float:
    """What the deployed gates let through on the data in the budget's unit, counted at the gates themselves."""
    taken = total = 0.0

    def count(module: nn.Module, given: tuple[Any, ...], answer: Any) -> None:
        nonlocal taken, total
        if isinstance(module, RankMask):
            taken, total = taken + float(answer.sum()), total + answer[..., 0].numel()
        elif isinstance(module, HardTokenGate):
            taken, total = taken + float(answer[1].sum()), total + float(given[2].sum())
        elif isinstance(module, (HardUpdateThreshold, HardModulation)):
            choice = answer if answer.dtype == torch.bool else answer.ne(0).any(-1)
            taken, total = taken + float(choice[real].sum()), total + float(real.sum())

    handles = [module.register_forward_hook(count) for module in fast.reference_graph.children()]
    for batch in DATA:
        real = batch["attention_mask"].bool()
        fast.reference(**batch)
    for handle in handles:
        handle.remove()
    assert total > 0, f"no gate of {name} was called"
    return taken / total


@pytest.mark.parametrize("name", ["ccm", "tspeft", "gatera", "masklora"])
def test_fitting_reaches_the_budget_that_the_deployed_model_takes(name: str) -> None:
    fast = gatefx.optimize(lora(), config_of(name), BUDGETS[name], data=DATA, distill_steps=80, progress=False)
    achieved: Any = fast.report.facts["fitted"][name]["achieved"]  # type: ignore[index]  # facts are plain data
    taken = taken_by(fast, name)

    # masklora rounds up to whole tokens: ⌈n/2⌉ of up to nine.
    assert taken == pytest.approx(BUDGETS[name], rel=0.15 if name == "masklora" else 0.01)
    # Of tspeft and gatera the last steps of fitting (gatera's mean gate), before a threshold is calibrated.
    assert achieved == pytest.approx(taken, rel=1e-6 if name in ("ccm", "masklora") else 0.1)


def test_fitted_ranks_hold_their_budget_where_the_router_has_become_sure() -> None:
    """Cold temperatures put all of p on few ranks; what the others cover is beyond float32's steps near one."""
    gated = gatefx.prepare(lora(), "ccm", budget=4, example_inputs=DATA[0])
    for router in routers_of(gated.graph_module):
        router.updates.fill_(1)
        router.heads.requires_grad_(False).bias.copy_(-12.0 * (torch.arange(router.heads.bias.numel()) % 8))
    fast = gatefx.optimize(gated, data=DATA, progress=False)
    assert fast.calibration is not None
    assert fast.calibration.level < -20
    gated.methods["ccm"].keep_calibration(gated.graph_module, fast.decisions["ccm"])
    again = gatefx.optimize(gated, progress=False)

    for batch in DATA:
        assert torch.equal(again.effective_ranks(batch), fast.effective_ranks(batch))
    assert taken_by(again, "ccm") == pytest.approx(4, abs=0.05)
