"""Several methods on one model: any subset trains, deploys to its masked meaning, exports, and comes back from disk."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import gatefx
from gatefx.errors import BudgetError, MethodError, SiteError
from gatefx.models.configs.catalogue import METHODS, kind_of
from gatefx.models.configs.weightlora import WeightLoRA
from gatefx.models.tiny import tiny, tiny_inputs
from gatefx.passes.deployed import DeployedModel
from gatefx.passes.gated import GatedModel

from .sampling import rest_slow

NAMES = tuple(dict.fromkeys(kind_of(config) for config in METHODS.values()))
#: Every method beside another one, and all of them; the other subsets are slow together.
PAIRS = ({"ccm", "masklora"}, {"tspeft", "gatera"}, {"weightlora", "ccm"})
SUBSETS = [
    pytest.param(
        subset, marks=() if size == len(NAMES) or set(subset) in PAIRS else pytest.mark.slow, id="+".join(subset)
    )
    for size in range(2, len(NAMES) + 1)
    for subset in itertools.combinations(NAMES, size)
]
#: Of the others the default; weightlora's is half of the adapters.
BUDGETS = {"ccm": 4, "tspeft": 0.5, "gatera": 0.5, "masklora": 0.5}
DATA = [tiny_inputs("bert", batch=6, tokens=9, seed=seed) for seed in range(3)]
HELD_OUT = [tiny_inputs("bert", batch=batch, tokens=tokens, seed=9) for batch, tokens in ((1, 3), (5, 12), (8, 2))]


def configured(names: Sequence[str]) -> list[Any]:
    """The methods on one LoRA: gatera gates LoRA where it shares a model."""
    found = [dataclasses.replace(METHODS[name], rank=8, target_modules=("query", "value", "dense")) for name in names]
    return [dataclasses.replace(config, update="lora") if config.method == "gatera" else config for config in found]


def budgets(names: Sequence[str]) -> dict[str, Any]:
    return {name: BUDGETS[name] for name in names if name in BUDGETS}


@cache
def trained(names: Sequence[str], steps: int = 6) -> GatedModel:
    """A gated model after a few steps; tests share it, so leave it as it is."""
    torch.manual_seed(0)
    gated = gatefx.prepare(tiny("bert"), configured(names), budget=budgets(names), example_inputs=DATA[0]).train()
    for name, parameter in gated.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.2)
    optimiser = torch.optim.AdamW([p for p in gated.parameters() if p.requires_grad], lr=1e-3)
    schedule = gated.schedule(steps, optimiser)
    for step in range(steps):
        gated(**DATA[step % len(DATA)], labels=torch.arange(6) % 2).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
    return gated


@cache
def deployed(names: Sequence[str]) -> DeployedModel:
    return gatefx.optimize(trained(names), data=DATA, verify=True)


def answers(model: DeployedModel) -> torch.Tensor:
    return torch.cat([model(**batch).logits for batch in HELD_OUT])


def apart(model: DeployedModel) -> float:
    return max(float((model(**batch).logits - model.reference(**batch).logits).abs().max()) for batch in HELD_OUT)


@pytest.mark.parametrize("names", SUBSETS)
def test_a_subset_trains_and_deploys_to_its_masked_meaning(names: Sequence[str], tolerance: Any) -> None:
    fast = deployed(names)

    assert list(fast.methods) == list(fast.budgets) == list(names)
    assert {name: fast.budgets[name] for name in budgets(names)} == budgets(names)
    assert apart(fast) <= tolerance[torch.float32]


@pytest.mark.parametrize("names", rest_slow([("ccm", "gatera"), NAMES]), ids="+".join)
def test_the_order_in_which_methods_are_named_does_not_matter(names: Sequence[str]) -> None:
    assert torch.equal(answers(gatefx.optimize(trained(names[::-1]), data=DATA)), answers(deployed(names)))


@pytest.mark.parametrize("order", rest_slow(list(itertools.permutations(NAMES[:3]))[:0:-1], 2), ids="+".join)
def test_trained_gates_are_hardened_and_compacted_in_any_order(order: Sequence[str], tolerance: Any) -> None:
    """Without data nothing is measured between one method and the next: only the order of the passes differs."""
    gated = copy.deepcopy(trained(NAMES[:3]))
    wanted = answers(gatefx.optimize(gated))
    gated.methods = {name: gated.methods[name] for name in order}
    fast = gatefx.optimize(gated, verify=True)

    torch.testing.assert_close(answers(fast), wanted, rtol=0, atol=tolerance[torch.float32])
    assert apart(fast) <= tolerance[torch.float32]


def test_everything_kept_is_the_plain_adapter_bit_for_bit() -> None:
    names = tuple(name for name in NAMES if name != "weightlora")
    gated = trained(names)
    plain = gatefx.optimize(gated, budget=dict.fromkeys(names, "100%"), data=DATA)
    alone = gatefx.prepare(tiny("bert"), configured(["ccm"]), budget=4, example_inputs=DATA[0])
    alone.load_state_dict(gated.state_dict(), strict=False)

    assert torch.equal(answers(plain), answers(gatefx.optimize(alone, budget="100%")))


def test_budgets_change_one_by_one(tolerance: Any) -> None:
    fast = copy.deepcopy(deployed(("ccm", "gatera")))

    fast.budget = {"gatera": 0.8}
    assert fast.budgets == {"ccm": 4, "gatera": 0.8}
    assert apart(fast) <= tolerance[torch.float32]
    for bad in (3, {"masklora": 0.5}, {"gatera": 2}):
        with pytest.raises(BudgetError):
            fast.budget = bad
    assert fast.budgets == {"ccm": 4, "gatera": 0.8}


def test_an_exported_composition_answers_alike(tmp_path: Path) -> None:
    fast = copy.deepcopy(deployed(NAMES))
    session = gatefx.load(gatefx.export(fast, tmp_path / "out"))

    for change in ({}, {"gatera": 0.9}):
        fast.budget = session.budget = change
        assert set(session.budget) == set(fast.budgets)
        for batch in HELD_OUT:
            answer = torch.as_tensor(session(**batch)["logits"])
            torch.testing.assert_close(answer, fast(**batch).logits, rtol=0, atol=1e-4)


def test_a_saved_composition_comes_back_exactly(tmp_path: Path) -> None:
    gated = copy.deepcopy(trained(NAMES)).eval()
    folder = gated.save_pretrained(tmp_path / "gates")
    loaded = gatefx.from_pretrained(tiny("bert"), folder, example_inputs=DATA[0]).eval()

    options = [{name: method.config for name, method in model.methods.items()} for model in (loaded, gated)]
    assert options[0] == options[1]
    assert loaded.budget == gated.budget
    for batch in HELD_OUT:
        assert torch.equal(loaded(**batch).logits, gated(**batch).logits)


def test_a_gated_composition_cannot_be_merged() -> None:
    with pytest.raises(SiteError, match="cannot be merged"):
        trained(NAMES).merge_and_unload()
    with pytest.raises(SiteError, match="cannot be merged"):
        gatefx.optimize(trained(("ccm", "gatera")), data=DATA, fold=True)


def test_gates_that_keep_everything_merge() -> None:
    gated = trained(("ccm", "gatera"))
    folded = gatefx.optimize(gated, budget={"ccm": "100%", "gatera": "100%"}, fold=True)
    plain = gatefx.optimize(gated, budget={"ccm": "100%", "gatera": "100%"}, fold=False)

    assert {site.form for site in folded.sites} == {"merged"}
    torch.testing.assert_close(answers(folded), answers(plain), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("method", "budget", "error", "words"),
    [
        (["ccm", "ccm"], None, MethodError, "named once"),
        ([], None, MethodError, "No method"),
        (["ccm", gatefx.CCM(rank=4)], None, MethodError, "named once"),
        (["ccm", "gatera"], 4, BudgetError, "a budget each"),
        (["ccm"], {"gatera": 0.5}, BudgetError, "not used"),
        (["ccm", "gatera"], None, MethodError, 'update="lora"'),
        ([gatefx.CCM(rank=4), WeightLoRA(rank=8)], None, MethodError, "share one adapter"),
    ],
)
def test_compositions_that_make_no_sense_are_refused(method: Any, budget: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        gatefx.prepare(tiny("bert"), method, budget=budget, example_inputs=DATA[0])


def test_adapter_options_are_given_once() -> None:
    methods = [gatefx.CCM(rank=4, target_modules=("query",)), "weightlora"]
    gated = gatefx.prepare(tiny("bert"), methods, example_inputs=DATA[0])

    assert {method.config.rank for method in gated.methods.values()} == {4}
    assert {method.config.target_modules for method in gated.methods.values()} == {("query",)}
