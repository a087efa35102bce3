"""Token-selective updates end to end: prepare, train, fit, optimize, save, export."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import fx

import gatefx
from gatefx.errors import BudgetError, SiteError, UntrainedGateError
from gatefx.models.configs.tspeft import TSPEFT
from gatefx.models.tiny import tiny, tiny_inputs
from gatefx.passes.deployed import DeployedModel
from gatefx.passes.find.thresholds import find_thresholded, thresholds_of
from gatefx.passes.gated import GatedModel
from gatefx.passes.methods.tspeft_schedule import ThresholdSchedule, learning_rate_share

from ...sampling import rest_slow

LABELS = torch.tensor([0, 1, 2, 0])
NEAR = {"rtol": 0, "atol": 1e-5}


def model_of() -> Any:
    return tiny("bert", num_labels=3)


def batches(count: int = 3) -> list[dict[str, Any]]:
    return [tiny_inputs("bert", batch=4, tokens=5 + 3 * index, seed=index) for index in range(count)]


def prepared(budget: float | None = 0.5, **options: Any) -> GatedModel:
    torch.manual_seed(0)
    return gatefx.prepare(
        model_of(), TSPEFT(rank=4, target_modules=("query", "dense"), **options), budget, example_inputs=batches()[0]
    )


def optimiser_of(gated: GatedModel) -> torch.optim.Optimizer:
    return torch.optim.Adam([p for p in gated.parameters() if p.requires_grad], 1e-2)


def train(gated: GatedModel, steps: int, total: int | None = None, start: int = 0) -> ThresholdSchedule:
    optimiser = optimiser_of(gated)
    schedule = gated.schedule(total or steps, optimiser)
    gated.train()
    for index in range(start, start + steps):
        torch.manual_seed(index)  # dropout's, so that runs can be compared
        gated(**batches()[index % 3], labels=LABELS)["loss"].backward()
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
    gated.eval()
    assert isinstance(schedule, ThresholdSchedule)
    return schedule


@pytest.fixture(scope="module")
def trained() -> GatedModel:
    """A model trained a little under a budget, which no test may change."""
    gated = prepared()
    train(gated, 12)
    return gated


def apart(fast: DeployedModel) -> float:
    return max(float((fast(**b)["logits"] - fast.reference(**b)["logits"]).abs().max()) for b in batches(4))


def test_before_training_it_is_the_plain_adapter_bit_for_bit() -> None:
    gated = prepared().eval()
    plain = gatefx.optimize(gated, budget="100%")
    for name, value in gated.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(value)
    batch = batches()[1]

    assert torch.equal(gated(**batch)["logits"], gatefx.optimize(gated, budget="100%")(**batch)["logits"])
    assert not torch.equal(gated(**batch)["logits"], plain(**batch)["logits"])


def test_training_moves_every_threshold_and_reports_shares() -> None:
    gated = prepared(None, step_scale=1e-3, sparsity_weight=1e-3)
    schedule = train(gated, 6)
    row = schedule.history[-1]

    assert row.step == 6
    assert set(row.thresholds) == set(thresholds_of(gated.graph_module)) == set(row.shares)
    assert max(row.thresholds.values()) > 0
    assert min(row.thresholds.values()) >= 0
    assert row.level == 0, "without a budget thresholds decide alone"
    assert set(schedule.figures()) == {"threshold_mean", "update_share", "threshold_level"}
    assert 0 < row.update_share <= 1


def test_training_drives_the_share_to_the_budget() -> None:
    gated = prepared(0.3, level_rate=0.5)
    schedule = train(gated, 30)

    assert schedule.history[0].update_share > 0.9
    assert sum(row.update_share for row in schedule.history[-6:]) / 6 == pytest.approx(0.3, abs=0.1)


def test_held_out_batches_take_the_calibrated_share(trained: GatedModel) -> None:
    """Within 5 points: the budget is met on the calibration data, and other sentences have other ratios."""
    calibration = [tiny_inputs("bert", batch=16, tokens=16, seed=seed) for seed in range(100, 104)]
    held_out = [tiny_inputs("bert", batch=16, tokens=16, seed=seed) for seed in range(200, 204)]
    for budget in (0.25, 0.5, 0.75):
        fast = gatefx.optimize(trained, budget=budget, data=calibration, progress=False)
        taken = Taken(fast.graph_module)
        assert taken.over(fast, calibration) == pytest.approx(budget, abs=0.005)
        assert taken.over(fast, held_out) == pytest.approx(budget, abs=0.05)


class Taken(fx.Interpreter):
    """Runs a deployed graph and counts at its operators: which real tokens got an update."""

    def over(self, fast: DeployedModel, data: list[dict[str, Any]]) -> float:
        self.taken = self.total = 0
        for batch in data:
            self.real = batch["attention_mask"].bool()
            self.run(*fast.arrange(batch))
        return self.taken / self.total

    def run_node(self, n: fx.Node) -> Any:
        answer = super().run_node(n)
        if n.target is torch.ops.gatefx.token_gated_lora.default:
            base = self.fetch_args_kwargs_from_env(n)[0][0]
            changed = (answer != base).any(-1)
            changed = changed[self.real] if changed.shape == self.real.shape else changed  # a pooled state has no token
            self.taken, self.total = self.taken + int(changed.sum()), self.total + changed.numel()
        return answer


def test_the_step_follows_the_learning_rate_schedule() -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([weight], 0.1)
    assert learning_rate_share(None) == learning_rate_share(optimiser) == 1
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, 4)
    optimiser.step()
    schedule.step()
    assert learning_rate_share(optimiser) == pytest.approx(0.75)
    peaked = torch.optim.SGD([weight], 0.1)
    torch.optim.lr_scheduler.OneCycleLR(peaked, max_lr=1.0, total_steps=10)
    assert 0 < learning_rate_share(peaked) < 0.1


@pytest.mark.parametrize("forms", [None, "masked"])
def test_deployed_it_equals_the_masked_graph(trained: GatedModel, forms: str | None) -> None:
    fast = gatefx.optimize(trained, data=batches(), forms=forms, verify=True)

    assert {site.form for site in fast.sites} == {"masked" if forms else "skipping"}
    assert apart(fast) <= 1e-5


def test_the_budget_is_met_and_changes_at_run_time(trained: GatedModel) -> None:
    fast = gatefx.optimize(trained, data=batches())
    batch = batches()[1]
    shares = [site.update_share for site in fast.sites]
    before = fast(**batch)["logits"]

    assert fast.decisions["tspeft"].facts["update_share"] == pytest.approx(0.5, abs=0.03)
    assert 0 <= min(shares) < max(shares) <= 1
    assert fast.changeable() == ("tspeft",)
    fast.budget = 0.2
    assert not torch.equal(fast(**batch)["logits"], before)
    assert apart(fast) <= 1e-5
    assert {site.update_share for site in fast.sites} == {0.2}
    fast.budget = "50%"
    torch.testing.assert_close(fast(**batch)["logits"], before, **NEAR)
    assert [site.update_share for site in fast.sites] == shares
    for wrong in (0, 1.5, 3):
        with pytest.raises(BudgetError):
            fast.budget = wrong


def test_without_a_budget_the_trained_thresholds_decide() -> None:
    gated = prepared(None, step_scale=1e-2, sparsity_weight=1e-2)
    train(gated, 12)
    fast = gatefx.optimize(gated, data=batches())
    bare = gatefx.optimize(gated)

    assert 0 < float(fast.decisions["tspeft"].facts["update_share"]) < 1  # type: ignore[arg-type]  # a number
    for batch in batches(4):
        torch.testing.assert_close(fast(**batch)["logits"], gated(**batch)["logits"], **NEAR)
        torch.testing.assert_close(bare(**batch)["logits"], gated(**batch)["logits"], **NEAR)
        assert torch.equal(fast.reference(**batch)["logits"], gated(**batch)["logits"])
    assert bare.changeable() == ()


def test_a_threshold_of_zero_that_stays_is_no_gate_and_folds() -> None:
    gated = prepared(None, step_scale=1e-2, sparsity_weight=1e-2)
    train(gated, 12)
    gates = thresholds_of(gated.graph_module)
    first, second, *_ = gates
    gates[first].tau.fill_(0)
    gates[second].tau.fill_(1.0)
    fast = gatefx.optimize(gated)
    forms = {site.name: site.form for site in fast.sites}

    assert (forms[first], forms[second]) == ("merged", "skipping")
    assert {site.name: site.form for site in gatefx.optimize(gated, fold=False).sites}[first] == "lora"
    assert apart(fast) <= 1e-5


def test_gates_that_never_varied_can_be_frozen(trained: GatedModel) -> None:
    gated = copy.deepcopy(trained)
    gates = thresholds_of(gated.graph_module)
    first, second, *_ = gates
    gates[first].tau.fill_(-100.0)
    gates[second].tau.fill_(100.0)
    fast = gatefx.optimize(gated, data=batches(), freeze_static=True)
    forms = {site.name: site.form for site in fast.sites}

    assert (forms[first], forms[second]) == ("merged", "dropped")
    assert apart(fast) <= 1e-5


@pytest.mark.parametrize("fold", [None, True])
def test_a_budget_of_everything_is_the_plain_adapter(trained: GatedModel, fold: bool | None) -> None:
    fast = gatefx.optimize(trained, budget="100%", data=batches(), fold=fold)

    assert {site.form for site in fast.sites} == {"merged" if fold else "lora"}
    assert not find_thresholded(fast.graph_module)
    assert apart(fast) <= 1e-5


def test_a_gate_that_decides_cannot_be_merged(trained: GatedModel) -> None:
    with pytest.raises(SiteError, match="gated adapter cannot be merged"):
        gatefx.optimize(trained, data=batches(), fold=True)


def test_without_data_the_trained_level_stands_and_says_so(trained: GatedModel) -> None:
    fast = gatefx.optimize(trained)

    assert "the budget of 0.5 was not calibrated" in str(fast.report)
    assert fast.changeable() == ()
    torch.testing.assert_close(fast(**batches()[2])["logits"], trained(**batches()[2])["logits"], **NEAR)


@pytest.mark.parametrize("budget", rest_slow([0.4, None]))
def test_untrained_gates_are_fitted_on_data(budget: float | None) -> None:
    torch.manual_seed(0)
    tuned = get_peft_model(model_of(), LoraConfig(r=4, target_modules=["query", "value"])).eval()
    for name, value in tuned.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(value)
    with pytest.raises(UntrainedGateError):
        gatefx.optimize(tuned, "tspeft", budget)
    fast = gatefx.optimize(tuned, "tspeft", budget, data=batches(), distill_steps=20, progress=False)

    assert "fitted by distillation in 20 steps" in str(fast.report)
    assert {site.form for site in fast.sites} == {"skipping"}
    if budget is not None:
        assert fast.decisions["tspeft"].facts["update_share"] == pytest.approx(budget, abs=0.05)
    assert apart(fast) <= 1e-5


def test_saved_and_read_back_bit_for_bit(trained: GatedModel, tmp_path: Path) -> None:
    trained.save_pretrained(tmp_path / "gates")
    again = gatefx.from_pretrained(model_of(), tmp_path / "gates", example_inputs=batches()[0]).eval()

    batch = batches()[1]
    assert torch.equal(again(**batch)["logits"], trained(**batch)["logits"])
    wanted = trained.graph_module.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in again.graph_module.state_dict().items())
    assert again.methods["tspeft"].config == trained.methods["tspeft"].config
    assert again.budget == 0.5


def test_a_resumed_run_goes_on_exactly() -> None:
    whole = prepared(0.4)
    train(whole, 4, total=8)
    resumed = prepared(0.4)
    resumed.load_state_dict(whole.state_dict())
    # A fresh Adam for both: what is compared is the gates' own state.
    train(whole, 4, total=8, start=4)
    train(resumed, 4, total=8, start=4)

    wanted = whole.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in resumed.state_dict().items())
    assert float(next(iter(thresholds_of(whole.graph_module).values())).level) != 0


@pytest.mark.parametrize("forms", rest_slow([None, "masked"]))
def test_exported_it_answers_as_in_torch(trained: GatedModel, tmp_path: Path, forms: str | None) -> None:
    fast = gatefx.optimize(trained, data=batches(), forms=forms)
    gatefx.export(fast, tmp_path / "artifact")
    session = gatefx.load(tmp_path / "artifact")

    for budget in (0.5, 0.15, 0.95):
        fast.budget = session.budget = budget
        for batch in (*batches(4), tiny_inputs("bert", batch=1, tokens=1)):
            answered = torch.as_tensor(session(**{name: value.numpy() for name, value in batch.items()})["logits"])
            torch.testing.assert_close(answered, fast(**batch)["logits"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("wrong", [0, 1.2, 3, "0%", "few"])
def test_a_budget_is_a_share(wrong: Any) -> None:
    with pytest.raises(BudgetError, match="share"):
        prepared(wrong)
