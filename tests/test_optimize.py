"""optimize: a deployed model that equals its masked meaning, follows its budget, and leaves what it was given alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import gatefx
from gatefx.errors import ArtifactError, BudgetError, InputError, MethodError, SiteError, UntrainedGateError
from gatefx.models.tiny import tiny, tiny_inputs
from gatefx.passes.deployed import DeployedModel
from gatefx.passes.gated import GatedModel
from gatefx.passes.methods.ccm_schedule import routers_of

from .sampling import rest_slow

peft = pytest.importorskip("peft")

SMALL = gatefx.CCM(rank=8, d_router=8, target_modules=("query", "value", "dense"))
DATA = [tiny_inputs("bert", batch=8, tokens=7, seed=seed) for seed in range(4)]
HELD_OUT = [tiny_inputs("bert", batch=batch, tokens=tokens, seed=9) for batch, tokens in ((1, 3), (5, 9), (8, 2))]


def lora(seed: int = 0, **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    options = {"r": 8, "lora_alpha": 8, "target_modules": ["query", "value", "dense"], **options}
    model = peft.get_peft_model(tiny("bert"), peft.LoraConfig(**options))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.2)
    return model.eval()


def trained(config: gatefx.CCM = SMALL, budget: Any = 3, steps: int = 3, **options: Any) -> GatedModel:
    gated = gatefx.prepare(lora(**options), config, budget=budget, example_inputs=DATA[0]).train()
    for router in routers_of(gated.graph_module):
        nn.init.normal_(router.heads.weight)
    optimiser = torch.optim.AdamW([p for p in gated.parameters() if p.requires_grad], lr=1e-3)
    schedule = gated.schedule(steps)
    for step in range(steps):
        gated(**DATA[step % 4], labels=torch.arange(8) % 2).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
    return gated


@pytest.fixture(scope="module")
def gated() -> GatedModel:
    return trained()


@pytest.fixture(scope="module")
def untrained() -> GatedModel:
    """The gates of `lora()` as they start. Leave it as it is."""
    return gatefx.prepare(lora(), SMALL, budget=3, example_inputs=DATA[0])


@pytest.fixture(scope="module")
def fast(gated: GatedModel) -> DeployedModel:
    return gatefx.optimize(gated, data=DATA, forms="gathered", verify=True)


def apart(model: DeployedModel) -> float:
    return max(float((model(**b).logits - model.reference(**b).logits).abs().max()) for b in HELD_OUT)


def mean_rank(model: DeployedModel) -> float:
    return float(torch.cat([model.effective_ranks(batch) for batch in DATA]).double().mean())


def test_gathered_equals_its_masked_meaning(fast: DeployedModel, tolerance: Any) -> None:
    assert {site.form for site in fast.sites} == {"gathered"}
    assert apart(fast) <= tolerance[torch.float32]


def test_ranks_on_the_calibration_data_meet_the_budget(fast: DeployedModel) -> None:
    assert fast.calibration is not None
    assert mean_rank(fast) == pytest.approx(fast.calibration.ranks.mean)
    assert mean_rank(fast) == pytest.approx(3.0, abs=0.3)
    counts = torch.cat([fast.effective_ranks(batch) for batch in DATA])
    assert set(counts.unique().tolist()) <= {2, 4, 6, 8}


def test_the_given_model_is_left_as_it_was(gated: GatedModel) -> None:
    gated.train()
    before = copy.deepcopy(gated.state_dict())
    flags = {name: p.requires_grad for name, p in gated.named_parameters()}
    modes = {name: module.training for name, module in gated.named_modules()}
    rows = len(gated.report.passes)

    fast = gatefx.optimize(gated, budget=5, data=DATA)
    fast.budget = 2

    assert all(torch.equal(value, before[name]) for name, value in gated.state_dict().items())
    assert {name: p.requires_grad for name, p in gated.named_parameters()} == flags
    assert {name: module.training for name, module in gated.named_modules()} == modes
    assert (gated.budget, len(gated.report.passes)) == (3, rows)


def test_training_on_does_not_change_what_was_deployed(gated: GatedModel) -> None:
    copied = copy.deepcopy(gated).train()
    fast = gatefx.optimize(copied, data=DATA)
    before = fast(**HELD_OUT[1]).logits

    optimiser = torch.optim.SGD([p for p in copied.parameters() if p.requires_grad], lr=1.0)
    copied(**DATA[0], labels=torch.arange(8) % 2).loss.backward()
    optimiser.step()

    assert torch.equal(fast(**HELD_OUT[1]).logits, before)


def test_the_budget_may_be_set_at_run_time(gated: GatedModel, tolerance: Any) -> None:
    fast = gatefx.optimize(gated, data=DATA, forms="gathered")
    means = []
    for budget in (2, 3, "50%", 6, 8):
        fast.budget = budget
        means.append(mean_rank(fast))
        assert apart(fast) <= tolerance[torch.float32]
    assert means == sorted(means)
    assert means[-1] == 8
    assert fast.budget == 8
    for bad in (0, 9, "6 %", float("nan")):
        with pytest.raises(BudgetError):
            fast.budget = bad
    assert fast.budget == 8


def test_without_data_the_budget_is_fixed_and_the_report_says_so(gated: GatedModel) -> None:
    fast = gatefx.optimize(gated)

    assert fast.calibration is None
    assert "not calibrated" in str(fast.report)
    with pytest.raises(BudgetError, match=r"cannot change at run time(.|\n)*data="):
        fast.budget = 2


def test_keeping_every_rank_is_the_plain_adapter_bit_for_bit(untrained: GatedModel) -> None:
    model = lora()
    for everything in (8, 1.0, "100%"):
        full = gatefx.optimize(untrained, budget=everything, verify=True)
        with torch.no_grad():
            assert all(torch.equal(full(**batch).logits, model(**batch).logits) for batch in HELD_OUT)
    assert {site.form for site in full.sites} == {"lora"}
    assert "keeps every rank" in str(full.report)


def test_folding_every_rank_leaves_no_adapter(untrained: GatedModel) -> None:
    model = lora()
    folded = gatefx.optimize(untrained, budget=8, fold=True, verify=True)

    assert {site.form for site in folded.sites} == {"merged"}
    assert not [name for name, _ in folded.graph_module.named_parameters() if "lora_" in name]
    for batch in HELD_OUT:
        torch.testing.assert_close(folded(**batch).logits, model(**batch).logits, rtol=0, atol=1e-4)


def test_merging_what_a_gate_decides_is_refused(gated: GatedModel) -> None:
    with pytest.raises(SiteError, match=r"cannot be merged(.|\n)*such as bert"):
        gatefx.optimize(gated, data=DATA, fold=True)
    with pytest.raises(SiteError, match=r"cannot be merged(.|\n)*gatefx\.optimize"):
        gated.merge_and_unload()


@pytest.mark.parametrize("forms", ["gathered", "masked", None])
def test_forms_are_forms_of_one_function(gated: GatedModel, forms: Any, fast: DeployedModel) -> None:
    other = gatefx.optimize(gated, data=DATA, forms=forms, workload=(8, 7), engine="torch", verify=True)

    for batch in HELD_OUT:
        torch.testing.assert_close(other(**batch).logits, fast(**batch).logits, rtol=0, atol=1e-5)
    if forms is not None:
        assert {site.form for site in other.sites} == {forms}


def test_gates_that_never_vary_may_be_frozen(tolerance: Any) -> None:
    gated = trained()
    for router in routers_of(gated.graph_module):
        nn.init.zeros_(router.heads.weight)
        nn.init.normal_(router.heads.bias)
    loose = gatefx.optimize(gated, data=DATA, forms="gathered", verify=True)
    frozen = gatefx.optimize(gated, data=DATA, freeze_static=True, verify=True)
    unfolded = gatefx.optimize(gated, data=DATA, freeze_static=True, fold=False, verify=True)

    assert {site.form for site in frozen.sites} == {"merged"}
    assert {site.form for site in unfolded.sites} == {"lora"}
    for batch in HELD_OUT:
        torch.testing.assert_close(unfolded(**batch).logits, loose(**batch).logits, rtol=0, atol=1e-4)
        torch.testing.assert_close(frozen(**batch).logits, loose(**batch).logits, rtol=0, atol=1e-4)


def test_sites_no_larger_than_the_fewest_ranks_are_static() -> None:
    gated = trained(rank_pattern={"layer.0.attention.self.query": 2})
    fast = gatefx.optimize(gated, data=DATA, forms="gathered", verify=True)

    assert {site.name: site.form for site in fast.sites if site.rank == 2} == {
        "bert.encoder.layer.0.attention.self.query": "merged"
    }
    for batch in HELD_OUT:
        torch.testing.assert_close(fast(**batch).logits, fast.reference(**batch).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "options", rest_slow([{"gate": "hard_concrete"}, {"router_input": "site"}, {"gate": "soft"}, {"k": "fixed"}], 2)
)
def test_every_kind_of_gate_is_deployed(options: Any, tolerance: Any) -> None:
    fast = gatefx.optimize(trained(gatefx.CCM(**{**vars(SMALL), **options})), data=DATA, forms="gathered", verify=True)

    assert apart(fast) <= tolerance[torch.float32]
    assert mean_rank(fast) == pytest.approx(4.0 if options == {"k": "fixed"} else 3.0, abs=0.5)


@pytest.mark.parametrize("dtype", rest_slow([torch.bfloat16, torch.float64]))
def test_other_precisions_are_deployed(dtype: torch.dtype, tolerance: Any) -> None:
    gated = gatefx.prepare(lora().to(dtype), SMALL, budget=3, example_inputs=DATA[0])
    fast = gatefx.optimize(gated, data=DATA, forms="gathered", distill_steps=3, verify=True)

    assert fast(**HELD_OUT[0]).logits.dtype == dtype
    assert apart(fast) <= tolerance[dtype]


def test_a_peft_model_is_distilled_and_only_its_gates_are_fitted() -> None:
    model = lora()
    before = copy.deepcopy(model.state_dict())
    fast = gatefx.optimize(model, budget="40%", data=DATA, distill_steps=5)

    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert "fitted by distillation in 5 steps" in str(fast.report)
    for name, value in fast.reference_graph.named_parameters():
        if not name.startswith(("hard_rank_router", "rank_router")):
            assert torch.equal(value, before[name])
    full = gatefx.optimize(model, budget="100%", data=DATA)
    with torch.no_grad():
        assert torch.equal(full(**HELD_OUT[1]).logits, model(**HELD_OUT[1]).logits)


def test_gates_of_one_model_serve_its_adapter(gated: GatedModel, fast: DeployedModel, tmp_path: Any) -> None:
    gated.save_pretrained(tmp_path / "g")
    model = peft.PeftModel.from_pretrained(tiny("bert"), str(tmp_path / "g")).eval()

    other = gatefx.optimize(model, SMALL, budget=3, data=DATA, gates=tmp_path / "g", forms="gathered")

    for batch in HELD_OUT:
        torch.testing.assert_close(other(**batch).logits, fast(**batch).logits, rtol=0, atol=1e-5)


def test_gates_of_another_method_are_refused(gated: GatedModel, tmp_path: Any) -> None:
    gated.save_pretrained(tmp_path / "g")
    model = peft.PeftModel.from_pretrained(tiny("bert"), str(tmp_path / "g")).eval()

    with pytest.raises(ArtifactError, match="other methods"):
        gatefx.optimize(model, "tspeft", data=DATA, gates=tmp_path / "g")
    with pytest.raises(InputError, match="has its gates already"):
        gatefx.optimize(gated, data=DATA, gates=tmp_path / "g")


def test_casting_what_was_optimized_leaves_the_gated_model(gated: GatedModel) -> None:
    before = {name: value.clone() for name, value in gated.state_dict().items()}

    gatefx.optimize(gated, budget=3, data=DATA).double()

    after = gated.state_dict()
    assert {name: value.dtype for name, value in after.items()} == {n: v.dtype for n, v in before.items()}
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("budget", [0, -1, 9, 0.0, 1.5, float("nan"), "6 %", True])
def test_budgets_that_cannot_be_are_refused(gated: GatedModel, budget: Any) -> None:
    with pytest.raises(BudgetError, match="from 1 to 8"):
        gatefx.optimize(gated, budget=budget, data=DATA)


def test_untrained_gates_need_data(untrained: GatedModel) -> None:
    with pytest.raises(UntrainedGateError, match=r"no data to fit them on(.|\n)*data=\[batch"):
        gatefx.optimize(lora(), budget=3)
    with pytest.raises(UntrainedGateError, match="gates of ccm with 0 updates"):
        gatefx.optimize(untrained)


def test_a_model_without_adapters_is_sent_to_prepare() -> None:
    for data in (DATA, None):
        with pytest.raises((SiteError, UntrainedGateError)) as caught:
            gatefx.optimize(tiny("bert"), budget=3, data=data)
        assert "gatefx.prepare" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"data": []}, InputError, "holds no batch"),
        ({"data": DATA[0]}, InputError, "sequence of batches"),
        ({"data": "batches"}, InputError, "sequence of batches"),
        ({"data": [1, 2]}, InputError, "is no mapping"),
        ({"data": [{"input_ids": DATA[0]["input_ids"]}]}, InputError, "misses attention_mask"),
        ({"method": "cmm", "data": DATA}, MethodError, "no method 'cmm'"),
        ({"engine": "tensorrt", "data": DATA}, MethodError, "no engine 'tensorrt'"),
        ({"forms": "dense", "data": DATA}, MethodError, "no forms 'dense'"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(gated: GatedModel, options: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        gatefx.optimize(gated, **options)


def test_what_is_no_model_or_deployed_already_is_refused(fast: DeployedModel) -> None:
    with pytest.raises(InputError, match="deployed already"):
        gatefx.optimize(fast, data=DATA)
    with pytest.raises(InputError, match="no model"):
        gatefx.optimize("a path", data=DATA)  # type: ignore[arg-type]


def test_a_peft_model_with_a_batch_of_one_is_refused() -> None:
    one = {name: value[:1] for name, value in DATA[0].items()}

    with pytest.raises(InputError, match="has 1 entries"):
        gatefx.optimize(lora(), budget=3, data=[one, *DATA])


def test_a_deployed_model_stays_in_eval_mode_and_trains_nothing(fast: DeployedModel) -> None:
    assert not fast.train().training
    assert not [module for module in fast.modules() if module.training]
    assert not [p for p in fast.parameters() if p.requires_grad]


def test_labels_in_data_are_ignored_and_in_calls_give_the_loss(gated: GatedModel) -> None:
    labelled = [{**batch, "labels": torch.arange(8) % 2} for batch in DATA]
    fast = gatefx.optimize(gated, data=labelled)

    answer: Any = fast(**labelled[0])
    wanted = nn.functional.cross_entropy(answer.logits, labelled[0]["labels"])
    torch.testing.assert_close(answer.loss, wanted)


def test_a_generator_of_batches_is_read_once(gated: GatedModel) -> None:
    def batches() -> Any:
        yield from DATA

    assert gatefx.optimize(gated, data=batches()).calibration is not None


@pytest.mark.parametrize("kind", ["lora", "hira"])
def test_an_adapted_model_without_data_is_asked_for_data(kind: str) -> None:
    model = tiny("bert")
    adapter = nn.Linear(4, 4)
    model.add_module(f"{kind}_A", adapter)

    with pytest.raises(UntrainedGateError, match="no data to fit them on"):
        gatefx.optimize(model)
