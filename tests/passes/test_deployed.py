"""A deployed model: two graphs over one level, a budget that is checked, ranks that can be counted."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from torch import nn

import gatefx
from gatefx.errors import BudgetError, InputError
from gatefx.passes.deployed import DeployedModel
from gatefx.passes.methods.ccm_schedule import routers_of


@pytest.fixture
def deployed(plain: nn.Module, inputs: Any) -> DeployedModel:
    config = gatefx.CCM(rank=6, d_router=8)
    gated = gatefx.prepare(plain, config, budget=3, example_inputs=inputs())
    for name, parameter in gated.named_parameters():
        if ".lora_B." in name or "heads.weight" in name:
            nn.init.normal_(parameter)
    for router in routers_of(gated.graph_module):
        router.updates.fill_(1)  # counts as trained: nothing is fitted
    data = [inputs(8, 5, seed=seed) for seed in range(3)]
    return gatefx.optimize(gated, data=data, forms="gathered", verify=True)


def test_call_and_reference_agree_at_every_budget(deployed: DeployedModel, inputs: Any, tolerance: Any) -> None:
    for budget in (1, 2, 3.5 / 6, 6):
        deployed.budget = budget
        for batch, tokens in ((1, 1), (5, 7)):
            given = inputs(batch, tokens, seed=batch)
            torch.testing.assert_close(
                deployed(**given).logits, deployed.reference(**given).logits, rtol=0, atol=tolerance[torch.float32] * 10
            )


def test_effective_ranks_are_counted_per_example_and_site_and_leave_no_hooks(
    deployed: DeployedModel, inputs: Any
) -> None:
    counts = deployed.effective_ranks(inputs(4, 3))

    assert counts.shape == (4, 2)
    assert bool(((counts >= 1) & (counts <= 6)).all())
    assert not any(module._forward_hooks for module in deployed.modules())
    with pytest.raises(InputError):
        deployed.effective_ranks({})
    assert not any(module._forward_hooks for module in deployed.modules())


def test_a_copy_has_a_budget_of_its_own(deployed: DeployedModel, inputs: Any) -> None:
    other = copy.deepcopy(deployed)
    before = deployed(**inputs()).logits
    other.budget = 6

    assert deployed.budget == 3
    assert torch.equal(deployed(**inputs()).logits, before)
    torch.testing.assert_close(other(**inputs()).logits, other.reference(**inputs()).logits, rtol=0, atol=1e-4)


def test_a_refused_budget_changes_nothing(deployed: DeployedModel, inputs: Any) -> None:
    before = deployed(**inputs()).logits

    for bad in (0, 7, "x", None):
        with pytest.raises(BudgetError):
            deployed.budget = bad
    assert deployed.budget == 3
    assert torch.equal(deployed(**inputs()).logits, before)


def test_sites_and_report_are_json(deployed: DeployedModel) -> None:
    rows = json.loads(json.dumps([site.to_json() for site in deployed.sites]))

    assert [row["name"] for row in rows] == ["first", "second"]
    assert all(0 < row["mean_rank"] <= row["rank"] for row in rows)
    json.dumps(deployed.report.to_json())


def test_its_state_dict_loads_back(deployed: DeployedModel, inputs: Any) -> None:
    other = copy.deepcopy(deployed)
    for value in other.state_dict().values():
        if value.is_floating_point():
            value.zero_()
    other.load_state_dict(deployed.state_dict())

    assert torch.equal(other(**inputs()).logits, deployed(**inputs()).logits)
