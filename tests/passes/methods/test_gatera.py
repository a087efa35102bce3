"""Token modulation end to end: prepare, train, fit, optimize, save, export."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import HiraConfig, LoraConfig, get_peft_model

import gatefx
from gatefx.errors import BudgetError, MethodError, SiteError, UntrainedGateError
from gatefx.models.configs.gatera import GateRA
from gatefx.models.tiny import tiny, tiny_inputs
from gatefx.passes.find.modulations import find_modulated, modulations_of, update_sites
from gatefx.passes.gated import GatedModel
from gatefx.passes.graph.edit import shape_of
from gatefx.passes.methods.gatera_schedule import ModulationSchedule

from ...sampling import rest_slow, rest_slow_rows

UPDATES = ["hira", "lora"]
LABELS = torch.tensor([0, 1, 2, 0])
Make = Callable[[str], GatedModel]


def model_of() -> Any:
    return tiny("bert", num_labels=3)


def batches(count: int = 3) -> list[dict[str, Any]]:
    return [tiny_inputs("bert", batch=4, tokens=5 + 3 * index, seed=index) for index in range(count)]


def train(gated: GatedModel, steps: int, rate: float = 1e-2) -> ModulationSchedule:
    optimiser = torch.optim.Adam([p for p in gated.parameters() if p.requires_grad], rate)
    schedule = gated.schedule(steps)
    gated.train()
    for index in range(steps):
        loss = gated(**batches()[index % 3], labels=LABELS)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    gated.eval()
    assert isinstance(schedule, ModulationSchedule)
    return schedule


def prepared(update: str, budget: float | None = 0.6, **options: Any) -> GatedModel:
    config = GateRA(update=update, rank=4, **options)  # type: ignore[arg-type]  # a test's parameter
    return gatefx.prepare(model_of(), config, budget, example_inputs=batches()[0])


@pytest.fixture(scope="module")
def trained() -> Make:
    """update → a model trained a little, which no test may change."""

    @cache
    def make(update: str) -> GatedModel:
        torch.manual_seed(0)
        gated = prepared(update)
        train(gated, 9)
        return gated

    return make


def test_prepare_attaches_hira_and_trains_what_it_should() -> None:
    gated = prepared("hira")
    names = {name for name, value in gated.graph_module.named_parameters() if value.requires_grad}

    assert all(
        "hira_" in name or name.startswith(("modulation_", "model.classifier")) or "classifier" in name
        for name in names
    )
    assert len([name for name in names if ".hira_A." in name]) == len(update_sites(gated.graph_module)) > 10
    answer = gated.train()(**batches()[0], labels=LABELS)
    answer["loss"].backward()
    torch.testing.assert_close(answer["loss"].detach(), answer["task_loss"] + answer["gate_loss"])
    assert all(gate.score.weight.grad is not None for gate in modulations_of(gated.graph_module))


def test_the_pooler_s_gate_is_one_per_example(trained: Make) -> None:
    gated = trained("hira")
    gated(**batches()[1])
    pooler = next(item for item in find_modulated(gated.graph_module) if "pooler" in item.site.name)

    assert len(shape_of(pooler.gate)) == 2
    assert pooler.module.record.gate.shape == (4,)  # type: ignore[union-attr]  # a training gate that was called


def test_training_drives_the_mean_gate_to_the_budget() -> None:
    torch.manual_seed(0)
    schedule = train(prepared("lora", 0.25), 40, 2e-2)

    assert schedule.history[0].mean > 0.4
    assert schedule.history[-1].mean == pytest.approx(0.25, abs=0.1)
    figures = schedule.figures()
    assert set(figures) == {"gate_mean", "gate_entropy", "gate_open_share", "gate_multiplier"}
    assert figures["gate_mean"] == schedule.history[-1].mean


@pytest.mark.parametrize("update", UPDATES)
def test_deployed_it_equals_the_masked_graph(trained: Make, update: str) -> None:
    fast = gatefx.optimize(trained(update), data=batches(), verify=True)

    assert {site.form for site in fast.sites} == {"routed"}
    assert len(fast.sites) == len(update_sites(trained(update).graph_module))
    for batch in batches(4):
        torch.testing.assert_close(fast(**batch)["logits"], fast.reference(**batch)["logits"], rtol=0, atol=1e-5)


def test_the_masked_form_can_be_kept(trained: Make) -> None:
    fast = gatefx.optimize(trained("hira"), data=batches(), forms="masked")

    assert {site.form for site in fast.sites} == {"masked"}
    batch = batches()[2]
    torch.testing.assert_close(fast(**batch)["logits"], fast.reference(**batch)["logits"], rtol=0, atol=1e-5)


def test_the_budget_is_met_and_changes_at_run_time(trained: Make) -> None:
    fast = gatefx.optimize(trained("hira"), data=batches())
    batch = batches()[1]
    shares = [site.update_share for site in fast.sites]
    before = fast(**batch)["logits"]

    assert fast.decisions["gatera"].facts["update_share"] == pytest.approx(0.6, abs=0.03)
    assert 0 <= min(shares) < max(shares) <= 1
    assert fast.changeable() == ("gatera",)
    fast.budget = 0.2
    assert not torch.equal(fast(**batch)["logits"], before)
    torch.testing.assert_close(fast(**batch)["logits"], fast.reference(**batch)["logits"], rtol=0, atol=1e-5)
    fast.budget = "60%"
    torch.testing.assert_close(fast(**batch)["logits"], before, rtol=0, atol=1e-5)
    assert [site.update_share for site in fast.sites] == shares
    for wrong in (0, 1.5, 3):
        with pytest.raises(BudgetError):
            fast.budget = wrong


@pytest.mark.parametrize("update", rest_slow(UPDATES))
def test_soft_gates_are_the_trained_model(trained: Make, update: str) -> None:
    gated = trained(update)
    soft = GateRA(update=update, rank=4, gate="soft")  # type: ignore[arg-type]  # a test's parameter
    fast = gatefx.optimize(gated, soft, data=batches())

    assert {site.form for site in fast.sites} == {"soft"}
    assert all(0 < (site.gate_mean or 0) < 1 for site in fast.sites)
    for batch in batches():
        torch.testing.assert_close(fast(**batch)["logits"], gated(**batch)["logits"], rtol=0, atol=1e-5)
        torch.testing.assert_close(fast.reference(**batch)["logits"], gated(**batch)["logits"], rtol=0, atol=0)


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("fold", [None, True])
def test_a_budget_of_everything_is_the_plain_adapter(trained: Make, update: str, fold: bool | None) -> None:
    fast = gatefx.optimize(trained(update), budget="100%", data=batches(), fold=fold)

    assert {site.form for site in fast.sites} == {"merged" if fold else update}
    assert not find_modulated(fast.graph_module)
    batch = batches()[0]
    torch.testing.assert_close(fast(**batch)["logits"], fast.reference(**batch)["logits"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("update", rest_slow(UPDATES))
def test_gates_that_never_varied_can_be_frozen(update: str) -> None:
    torch.manual_seed(0)
    gated = prepared(update, None)
    train(gated, 3)
    first, second = modulations_of(gated.graph_module)[:2]
    for gate, bias in ((first, 50.0), (second, -50.0)):
        gate.score.bias.data.fill_(bias)
    fast = gatefx.optimize(gated, data=batches(), freeze_static=True)
    forms = [site.form for site in fast.sites]

    assert forms[:2] == ["merged", "dropped"]
    batch = batches()[0]
    torch.testing.assert_close(fast(**batch)["logits"], fast.reference(**batch)["logits"], rtol=0, atol=1e-5)


def test_without_data_the_threshold_stands_and_says_so(trained: Make) -> None:
    fast = gatefx.optimize(trained("hira"))

    assert "where g ≥ 0.5; the budget of 0.6 was not calibrated" in str(fast.report)
    assert fast.changeable() == ()


def test_an_earlier_calibration_is_kept(trained: Make) -> None:
    gated = trained("hira")
    fast = gatefx.optimize(gated, data=batches())
    method, decision = gated.methods["gatera"], fast.decisions["gatera"]
    method.keep_calibration(gated.graph_module, decision)
    try:
        again = gatefx.optimize(gated)
        batch = batches()[0]
        assert torch.equal(again(**batch)["logits"], fast(**batch)["logits"])
        assert "an earlier deployment calibrated" in str(again.report)
    finally:
        for gate in modulations_of(gated.graph_module):
            gate.level.fill_(torch.inf)


def test_fold_refuses_gates_that_decide(trained: Make) -> None:
    with pytest.raises(SiteError, match="cannot be merged"):
        gatefx.optimize(trained("hira"), data=batches(), fold=True)


@pytest.mark.parametrize("kind", rest_slow(["lora", "hira"]))
def test_untrained_gates_are_fitted_to_the_adapter(kind: str) -> None:
    torch.manual_seed(0)
    names = ["query", "value"]
    config: Any = (
        LoraConfig(r=4, target_modules=names, init_lora_weights=False, task_type="SEQ_CLS")
        if kind == "lora"
        else HiraConfig(r=4, target_modules=names, init_weights=False)
    )
    tuned = get_peft_model(model_of(), config).eval()
    method = GateRA(update=kind)  # type: ignore[arg-type]  # a test's parameter
    if kind == "lora":
        with pytest.raises(UntrainedGateError):
            gatefx.optimize(tuned, method, 0.5)
    fast = gatefx.optimize(tuned, method, 0.5, data=batches(), distill_steps=20, progress=False)

    assert "fitted by distillation in 20 steps" in str(fast.report)
    assert {site.form for site in fast.sites} == {"routed"}
    batch = batches()[0]
    torch.testing.assert_close(fast(**batch)["logits"], fast.reference(**batch)["logits"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("update", rest_slow(UPDATES))
def test_saved_and_read_back_bit_for_bit(trained: Make, tmp_path: Path, update: str) -> None:
    gated = trained(update)
    gated.save_pretrained(tmp_path / "gates")
    again = gatefx.from_pretrained(model_of(), tmp_path / "gates", example_inputs=batches()[0]).eval()

    batch = batches()[1]
    assert torch.equal(again(**batch)["logits"], gated(**batch)["logits"])
    wanted = gated.graph_module.state_dict()
    assert {name for name in wanted if "hira_" in name or name.startswith("modulation_")}
    assert all(torch.equal(value, wanted[name]) for name, value in again.graph_module.state_dict().items())
    assert again.methods["gatera"].config == gated.methods["gatera"].config
    assert again.budget == 0.6


@pytest.mark.parametrize(
    ("update", "options"), rest_slow_rows([("hira", {}), ("lora", {"forms": "masked"}), ("hira", {"gate": "soft"})])
)
def test_exported_it_answers_as_in_torch(trained: Make, tmp_path: Path, update: str, options: dict[str, Any]) -> None:
    method = GateRA(update=update, rank=4, gate=options.get("gate", "hard"))  # type: ignore[arg-type]  # a test's parameter
    fast = gatefx.optimize(trained(update), method, data=batches(), forms=options.get("forms"))
    gatefx.export(fast, tmp_path / "artifact")
    session = gatefx.load(tmp_path / "artifact")

    for batch in (*batches(4), tiny_inputs("bert", batch=1, tokens=1)):
        answered = torch.as_tensor(session(**{name: value.numpy() for name, value in batch.items()})["logits"])
        torch.testing.assert_close(answered, fast(**batch)["logits"], rtol=0, atol=2e-5)


def test_the_other_kind_of_adapter_is_refused_with_the_option() -> None:
    tuned = get_peft_model(model_of(), LoraConfig(r=4, target_modules=["query"]))
    with pytest.raises(MethodError, match=r'carries LoRA(.|\n)*update="lora"'):
        gatefx.prepare(tuned, "gatera", example_inputs=batches()[0])
    hira = get_peft_model(model_of(), HiraConfig(r=4, target_modules=["query"]))
    with pytest.raises(MethodError, match=r"carries HiRA(.|\n)*update='hira'"):
        gatefx.prepare(hira, GateRA(update="lora"), example_inputs=batches()[0])


@pytest.mark.parametrize("wrong", [0, 1.2, 3, "0%", "few"])
def test_a_budget_is_a_share(wrong: Any) -> None:
    with pytest.raises(BudgetError, match="share"):
        prepared("lora", wrong)


def test_a_decoder_gates_a_prompt_and_a_single_token_apart() -> None:
    model = tiny("llama")
    batch = tiny_inputs(model, batch=2, tokens=6)
    gated = gatefx.prepare(model, GateRA(rank=4), example_inputs=batch).eval()
    gated(**batch)
    gated(**{name: value[:, :1] for name, value in batch.items()})
    (gate, *_) = modulations_of(gated.graph_module)

    assert gate.prefill is not None
    assert gate.decode is not None
    assert (gate.prefill.gate.shape, gate.decode.gate.shape) == ((2, 6), (2, 1))
