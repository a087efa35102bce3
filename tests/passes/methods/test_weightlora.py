"""Adapter selection end to end: prepare, train, optimize, save, export."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

import gatefx
from gatefx.errors import BudgetError, UntrainedGateError
from gatefx.models.configs.catalogue import kind_of, resolve_method
from gatefx.models.configs.ccm import CCM
from gatefx.models.configs.gatera import GateRA
from gatefx.models.configs.weightlora import WeightLoRA
from gatefx.models.tiny import tiny, tiny_inputs
from gatefx.passes.find.adapter_weights import find_weighted, weights_by_name
from gatefx.passes.find.adapters import find_sites
from gatefx.passes.gated import GatedModel

from ...sampling import rest_slow

LABELS = torch.tensor([0, 1, 2, 0])
DATA = [tiny_inputs("bert", batch=4, tokens=5 + 3 * index, seed=index) for index in range(3)]
Make = Callable[[str], GatedModel]


def model_of() -> Any:
    torch.manual_seed(3)
    return tiny("bert", num_labels=3)


def train(gated: GatedModel, steps: int, total: int | None = None) -> GatedModel:
    optimiser = torch.optim.AdamW([p for p in gated.parameters() if p.requires_grad], 1e-2)
    schedule = gated.schedule(total or steps, optimiser)
    gated.train()
    for index in range(steps):
        optimiser.zero_grad()
        gated(**DATA[index % 3], labels=LABELS)["loss"].backward()
        optimiser.step()
        schedule.step()
    return gated.eval()


def same(first: Any, second: Any, tolerance: float = 0.0) -> bool:
    return all(
        torch.allclose(first(**batch)["logits"], second(**batch)["logits"], rtol=0, atol=tolerance) for batch in DATA
    )


@pytest.fixture(scope="module")
def trained() -> Make:
    """Method's name → a model trained a little, which no test may change."""

    @cache
    def make(name: str) -> GatedModel:
        torch.manual_seed(0)
        return train(gatefx.prepare(model_of(), name, rank=4, example_inputs=DATA[0]), 8)

    return make


NAMES = ["weightlora", "weightlora+"]


def test_both_names_are_one_method() -> None:
    assert [resolve_method(name) for name in NAMES] == [WeightLoRA(), WeightLoRA(plus=True)]
    assert {kind_of(resolve_method(name)) for name in NAMES} == {"weightlora"}


@pytest.mark.parametrize("name", NAMES)
def test_deployed_it_equals_the_trained_model_and_dropped_sites_are_gone(trained: Make, name: str) -> None:
    gated = trained(name)
    fast = gatefx.optimize(gated, verify=True)
    forms = [site.form for site in fast.sites]

    assert (forms.count("lora"), forms.count("dropped")) == (6, 7)
    assert {site.rank for site in find_sites(fast.graph_module)[0]} == {4 if name == "weightlora" else 8}
    assert find_weighted(fast.graph_module) == ()
    assert same(fast, gated, 1e-5)
    assert same(fast, fast.reference, 1e-5)
    kept = fast.decisions["weightlora"].facts["kept"]
    assert kept == [site.name for site in fast.sites if site.form == "lora"]
    assert "6 of 13 adapters stay" in str(fast.report)


@pytest.mark.parametrize("name", rest_slow(NAMES))
def test_kept_adapters_fold(trained: Make, name: str) -> None:
    fast = gatefx.optimize(trained(name), fold=True)

    assert {site.form for site in fast.sites} == {"merged", "dropped"}
    assert find_sites(fast.graph_module)[0] == ()
    assert same(fast, trained(name), 1e-5)


@pytest.mark.parametrize("name", rest_slow(NAMES))
def test_saved_and_read_back_bit_for_bit(trained: Make, tmp_path: Path, name: str) -> None:
    gated = trained(name)
    gated.save_pretrained(tmp_path / "gates")
    again = gatefx.from_pretrained(model_of(), tmp_path / "gates", example_inputs=DATA[0]).eval()

    assert same(again, gated)
    wanted = gated.graph_module.state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in again.graph_module.state_dict().items())
    assert again.methods["weightlora"].config == gated.methods["weightlora"].config
    assert same(gatefx.optimize(again), gatefx.optimize(gated))
    optimiser = torch.optim.AdamW([p for p in again.parameters() if p.requires_grad], 1e-2)
    again.schedule(8, optimiser)
    held = {id(parameter) for parameter in optimiser.param_groups[0]["params"]}
    frozen = [site for site in find_sites(again.graph_module)[0] if site.name not in _kept(again)]
    assert len(frozen) == 7
    for site in frozen:
        assert id(again.graph_module.get_parameter(str(site.lora_a.target))) not in held


@pytest.mark.parametrize("name", rest_slow(NAMES))
def test_peft_reads_the_saved_adapter_without_its_weights(trained: Make, tmp_path: Path, name: str) -> None:
    gated = trained(name)
    gated.save_pretrained(tmp_path / "gates")
    tuned = PeftModel.from_pretrained(model_of(), tmp_path / "gates").eval()

    assert same(tuned, gated, 1e-5)


@pytest.mark.parametrize("name", rest_slow(NAMES))
def test_exported_it_answers_as_in_torch(trained: Make, tmp_path: Path, name: str) -> None:
    fast = gatefx.optimize(trained(name))
    session = gatefx.load(gatefx.export(fast, tmp_path / "artifact"))

    for batch in (*DATA, tiny_inputs("bert", batch=1, tokens=1)):
        answered = torch.as_tensor(session(**{key: value.numpy() for key, value in batch.items()})["logits"])
        torch.testing.assert_close(answered, fast(**batch)["logits"], rtol=0, atol=2e-5)


def test_a_run_that_ended_in_its_warm_up_is_judged_by_what_it_learned() -> None:
    torch.manual_seed(0)
    gated = train(gatefx.prepare(model_of(), "weightlora", rank=4, example_inputs=DATA[0]), 3, total=1000)
    omega = {name: float(weight.omega) for name, weight in weights_by_name(gated.graph_module).items()}
    fast = gatefx.optimize(gated, verify=True)
    scales = {site.name: site.scale for site in find_sites(fast.graph_module)[0]}

    assert scales == {name: pytest.approx(2.0 * value) for name, value in omega.items() if value != 0}
    assert same(fast, gated, 1e-5)


def test_a_budget_other_than_the_one_trained_is_refused(trained: Make) -> None:
    with pytest.raises(BudgetError, match="kept 6 adapters in training"):
        gatefx.optimize(trained("weightlora"), budget=3)
    assert {site.form for site in gatefx.optimize(trained("weightlora"), budget="100%").sites} == {"lora"}
    assert same(gatefx.optimize(trained("weightlora"), budget="100%"), trained("weightlora"))


def test_untrained_the_adapters_that_add_most_stay() -> None:
    names = ["query", "value"]
    config = LoraConfig(r=4, target_modules=names, init_lora_weights=False, task_type="SEQ_CLS")
    tuned = get_peft_model(model_of(), config).eval()
    loud = "base_model.model.bert.encoder.layer.1.attention.self.query"
    tuned.get_submodule(loud).lora_B["default"].weight.data.mul_(100)
    with pytest.raises(UntrainedGateError):
        gatefx.optimize(tuned, "weightlora", 1)
    fast = gatefx.optimize(tuned, "weightlora", 1, data=DATA, progress=False, verify=True)

    assert [site.name for site in fast.sites if site.form == "lora"] == [loud.removeprefix("base_model.model.")]
    assert "fitted in closed form" in str(fast.report)
    assert same(fast, fast.reference, 1e-5)


@pytest.mark.slow  # tests/test_several_methods.py holds each run to the masked meaning of such compositions
@pytest.mark.parametrize("forms", ["gathered", "masked"])
def test_beside_other_methods_dropped_sites_go_with_their_gates(tmp_path: Path, forms: str) -> None:
    torch.manual_seed(0)
    methods = [WeightLoRA(rank=8), CCM(rank=8), GateRA(rank=8, update="lora")]
    chosen = methods[:2] if forms == "gathered" else methods
    gated = train(gatefx.prepare(model_of(), chosen, {"ccm": 4}, example_inputs=DATA[0]), 8)
    fast = gatefx.optimize(gated, data=DATA, forms=forms, verify=True)

    assert [site.form for site in fast.sites].count("dropped") == 7
    assert same(fast, fast.reference, 1e-5)
    gone = {site.name for site in fast.sites if site.form == "dropped"}
    assert not gone & {site.name for site in find_sites(fast.graph_module)[0]}
    gated.save_pretrained(tmp_path / "gates")
    assert same(gatefx.from_pretrained(model_of(), tmp_path / "gates", example_inputs=DATA[0]).eval(), gated)


def _kept(gated: GatedModel) -> set[str]:
    return {name for name, weight in weights_by_name(gated.graph_module).items() if float(weight.omega) != 0}
