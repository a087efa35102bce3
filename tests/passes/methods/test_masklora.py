"""Token selection end to end: prepare, train, fit, optimize, save, export."""

from __future__ import annotations

import copy
import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import BertForQuestionAnswering

import gatefx
from gatefx.errors import BudgetError, MethodError, SiteError, UntrainedGateError
from gatefx.models.configs.masklora import MaskLoRA
from gatefx.models.tiny import tiny, tiny_decoder, tiny_inputs
from gatefx.passes.deployed import DeployedModel
from gatefx.passes.find.adapters import find_sites
from gatefx.passes.gate.token_scores import token_gates
from gatefx.passes.gated import GatedModel
from gatefx.passes.harden.token_calibration import look_at
from gatefx.passes.harden.token_gate import SHARE
from gatefx.passes.methods.masklora_schedule import TokenSchedule

from ...sampling import rest_slow

LABELS = torch.tensor([0, 1, 2, 0])
NEAR = {"rtol": 0, "atol": 1e-5}


def model_of(family: str = "bert") -> Any:
    return tiny(family, num_labels=3)


def batches(count: int = 3, family: str = "bert") -> list[dict[str, Any]]:
    return [tiny_inputs(family, batch=4, tokens=6 + 3 * index, seed=index) for index in range(count)]


def prepared(family: str = "bert", budget: Any = 0.5, **options: Any) -> GatedModel:
    torch.manual_seed(0)
    config = MaskLoRA(rank=4, **options)
    return gatefx.prepare(model_of(family), config, budget, example_inputs=batches(family=family)[0])


def train(gated: GatedModel, steps: int, family: str = "bert", rate: float = 3e-3) -> TokenSchedule:
    optimiser = torch.optim.Adam([p for p in gated.parameters() if p.requires_grad], rate)
    schedule = gated.schedule(steps)
    gated.train()
    for index in range(steps):
        batch = batches(family=family)[index % 3]
        labels = batch.get("decoder_input_ids", LABELS)
        optimiser.zero_grad()
        gated(**batch, labels=labels)["loss"].backward()
        optimiser.step()
        schedule.step()
    gated.eval()
    assert isinstance(schedule, TokenSchedule)
    return schedule


@cache
def trained(family: str = "bert", **options: Any) -> GatedModel:
    """A model trained a little, which no test may change."""
    gated = prepared(family, **options)
    train(gated, 9, family)
    return gated


@cache
def whole() -> DeployedModel:
    """The trained model with every token kept, which no test may change."""
    return gatefx.optimize(trained(), data=batches(), budget="100%")


def kept_counts(fast: DeployedModel, data: list[dict[str, Any]]) -> list[torch.Tensor]:
    """Cut by cut, how many tokens each example of the data keeps."""
    graph = fast.reference_graph
    hard = [m for name, m in graph.named_modules() if name.startswith("hard_token_gate")]
    hard = [m for m in hard if type(m).__name__ == "HardTokenGate"]
    return [torch.cat(look_at(graph, gate, data).counts) for gate in hard]


def test_training_uses_two_forwards_and_moves_every_part() -> None:
    gated = prepared()
    ((_, gate),) = token_gates(gated.graph_module)
    before = {name: value.detach().clone() for name, value in gate.named_parameters()}
    schedule = train(gated, 12)

    assert gate.full is not None
    assert int(gate.updates) == 12
    assert all(not torch.equal(value, before[name]) for name, value in gate.named_parameters())
    assert schedule.history[0].temperature > schedule.history[-1].temperature == pytest.approx(0.1)
    assert set(schedule.figures()) == {
        "token_share", "token_dropped_score", "token_predictor_error", "token_temperature", "token_multiplier"
    }  # fmt: skip


def test_the_loss_is_the_task_s_plus_the_gates() -> None:
    gated = prepared().train()
    answer = gated(**batches()[0], labels=LABELS)
    answer["loss"].backward()

    torch.testing.assert_close(answer["loss"].detach(), answer["task_loss"] + answer["gate_loss"])
    ((_, gate),) = token_gates(gated.graph_module)
    assert all(parameter.grad is not None for parameter in gate.parameters())


def test_the_masked_form_can_be_kept_and_a_calibration_too() -> None:
    gated = copy.deepcopy(trained())
    fast = gatefx.optimize(gated, data=batches(), forms="masked")
    assert all(row.name != "CompactTokens" for row in fast.report.passes)
    gated.methods["masklora"].keep_calibration(gated.graph_module, fast.decisions["masklora"])
    again = gatefx.optimize(gated)

    batch = batches()[1]
    torch.testing.assert_close(again(**batch)["logits"], fast(**batch)["logits"], **NEAR)


def test_in_eval_mode_it_already_drops_the_deployed_share() -> None:
    gated = trained()
    fast = gatefx.optimize(gated, fold=False)

    for batch in batches(4):
        torch.testing.assert_close(fast(**batch)["logits"], gated(**batch)["logits"], **NEAR)


@pytest.mark.parametrize(
    "options",
    rest_slow(
        [{"keep": ((0, 0.8), (1, 0.5))}, {"select": "threshold"}, {}, {"scores": "path"}, {"influence": "mixed"}], 2
    ),
)
def test_deployed_it_equals_the_masked_graph(options: dict[str, Any]) -> None:
    fast = gatefx.optimize(trained(**options), data=batches(), verify=True)

    for batch in batches(4):
        torch.testing.assert_close(fast(**batch)["logits"], fast.reference(**batch)["logits"], **NEAR)
    (compacted,) = [row for row in fast.report.passes if row.name == "CompactTokens"]
    assert len(compacted.fired) == len(options.get("keep", ((1, 0.5),)))
    assert compacted.declined == ()
    folded = options.get("scores") != "path"
    assert {site.form for site in fast.sites} == {"merged" if folded else "lora"}


@pytest.mark.parametrize("family", rest_slow(["deberta-v2", "vit", "t5", "roberta", "modernbert"]))
def test_families(family: str) -> None:
    gated = trained(family)
    fast = gatefx.optimize(gated, data=batches(family=family))

    batch = batches(family=family)[1]
    torch.testing.assert_close(fast(**batch)["logits"], fast.reference(**batch)["logits"], **NEAR)
    (counts,) = kept_counts(fast, [batch])
    real = batch["attention_mask"].sum(1) if "attention_mask" in batch else torch.full((4,), 17)
    assert counts.tolist() == [-(-int(n) // 2) for n in real]


def test_a_schedule_keeps_shares_of_the_original_tokens() -> None:
    fast = gatefx.optimize(trained(keep=((0, 0.8), (1, 0.5))), data=batches())
    lengths = [int(n) for n in batches()[2]["attention_mask"].sum(1)]
    first, second = kept_counts(fast, batches()[2:])

    assert first.tolist() == [-(-8 * n // 10) for n in lengths]
    assert second.tolist() == [-(-5 * n // 10) for n in lengths]
    fast.budget = 0.75  # half way from the schedule to everything
    first, second = kept_counts(fast, batches()[2:])
    assert first.tolist() == [-(-9 * n // 10) for n in lengths]
    assert second.tolist() == [-(-3 * n // 4) for n in lengths]


def test_the_budget_changes_at_run_time_in_torch_and_onnx(tmp_path: Path) -> None:
    fast = gatefx.optimize(trained(), data=batches())
    gatefx.export(fast, tmp_path / "artifact")
    session = gatefx.load(tmp_path / "artifact")
    batch = batches()[2]
    arrays = {name: value.numpy() for name, value in batch.items()}
    half = fast(**batch)["logits"]

    assert fast.changeable() == ("masklora",)
    for budget in (0.5, 0.3, 1.0):
        fast.budget = budget
        answered = torch.as_tensor(session.run(arrays, budget=budget)["logits"])
        torch.testing.assert_close(answered, fast(**batch)["logits"], rtol=0, atol=2e-5)
    torch.testing.assert_close(fast(**batch)["logits"], whole()(**batch)["logits"], **NEAR)
    fast.budget = "50%"
    assert torch.equal(fast(**batch)["logits"], half)
    assert get_share(fast) == 0.5
    with pytest.raises(BudgetError):
        fast.budget = 0.01


def get_share(fast: DeployedModel) -> float:
    return float(fast.graph_module.get_buffer(SHARE))


@pytest.mark.parametrize("options", rest_slow([{"scores": "path"}, {}, {"select": "threshold"}]))
def test_exported_it_answers_as_in_torch(tmp_path: Path, options: dict[str, Any]) -> None:
    fast = gatefx.optimize(trained(**options), data=batches())
    gatefx.export(fast, tmp_path / "artifact")
    session = gatefx.load(tmp_path / "artifact")

    for batch in (*batches(4), tiny_inputs("bert", batch=1, tokens=1)):
        answered = torch.as_tensor(session(**{name: value.numpy() for name, value in batch.items()})["logits"])
        torch.testing.assert_close(answered, fast(**batch)["logits"], rtol=0, atol=2e-5)


def test_everything_kept_is_the_plain_adapter_bit_for_bit() -> None:
    gated, fast = trained(), whole()
    ungated = gatefx.prepare(model_of(), "weightlora", "100%", example_inputs=batches()[0], rank=4)
    plain = gatefx.optimize(ungated).graph_module
    named = gated.graph_module.state_dict()
    plain.load_state_dict({name: named[name] for name in plain.state_dict() if name in named}, strict=False)

    assert {site.form for site in fast.sites} == {"lora"}
    for batch in batches():
        assert torch.equal(fast(**batch)["logits"], plain(*batch.values())["logits"])


def test_a_peft_model_is_fitted_on_data() -> None:
    config = LoraConfig(r=4, init_lora_weights=False, task_type="SEQ_CLS", target_modules="all-linear")
    tuned = get_peft_model(model_of(), config).eval()
    with pytest.raises(UntrainedGateError):
        gatefx.optimize(tuned, MaskLoRA(), 0.5)
    fast = gatefx.optimize(tuned, MaskLoRA(), 0.5, data=batches(), distill_steps=20, progress=False)

    assert "masklora: gates fitted by distillation in 20 steps" in str(fast.report)
    assert not find_sites(fast.graph_module)[0]
    batch = batches()[0]
    torch.testing.assert_close(fast(**batch)["logits"], fast.reference(**batch)["logits"], **NEAR)


def test_saved_and_read_back_bit_for_bit(tmp_path: Path) -> None:
    gated = trained(keep=((0, 0.8), (1, 0.5)))
    gated.save_pretrained(tmp_path / "gates")
    again = gatefx.from_pretrained(model_of(), tmp_path / "gates", example_inputs=batches()[0]).eval()

    batch = batches()[1]
    assert torch.equal(again(**batch)["logits"], gated(**batch)["logits"])
    wanted = gated.graph_module.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in again.graph_module.state_dict().items())
    assert again.methods["masklora"].config == gated.methods["masklora"].config


@pytest.mark.parametrize("wrong", [0, 1.2, 3, "0%", "few"])
def test_a_budget_is_a_share_and_no_count(wrong: Any) -> None:
    with pytest.raises(BudgetError, match="share"):
        prepared(budget=wrong)


def test_decoders_and_unknown_cuts_are_refused() -> None:
    with pytest.raises(SiteError, match="causal attention"):
        gatefx.prepare(tiny("llama"), "masklora", 0.5, example_inputs=tiny_inputs("llama", batch=2))
    with pytest.raises(MethodError, match=r"some of \[0, 1\]"):
        prepared(keep={5: 0.5})
    with pytest.raises(MethodError, match="No adapter stands before the cut"):
        prepared(keep={0: 0.5}, scores="path")
    with pytest.raises(SiteError, match="LoRA on its query and on its key"):
        prepared(influence="logits", target_modules=("value",))
    with pytest.raises(MethodError, match="influence is out of range"):
        MaskLoRA(scores="path", influence="mixed")
    with pytest.raises(MethodError, match="schedule of cuts"):
        MaskLoRA(keep={1: 0.5, 2: 0.8})


def test_spikes_are_run_again_with_every_token_in_torch_and_onnx(tmp_path: Path) -> None:
    config = MaskLoRA(rank=4, recover_if_spike=True)
    with pytest.raises(BudgetError, match="Spikes"):
        gatefx.optimize(trained(), config)
    fast = gatefx.optimize(trained(), config, data=batches())
    never = gatefx.optimize(trained(), data=batches())
    assert fast.recovery is not None
    batch = batches()[2]
    arrays = {name: value.numpy() for name, value in batch.items()}
    masked, full = never(**batch)["logits"], whole()(**batch)["logits"]
    entropies = torch.distributions.Categorical(logits=masked).entropy().sort().values
    # Between the entropies of this batch, so that some examples spike and some do not.
    rule = dataclasses.replace(fast.recovery, bound=float(entropies[1] + entropies[2]) / 2)
    fast.recovery = fast._reference.recovery = rule
    gatefx.export(fast, tmp_path / "artifact")
    session = gatefx.load(tmp_path / "artifact")

    spikes = rule.spiking({"logits": masked})
    wanted = torch.where(spikes[:, None], full, masked)
    assert spikes.sum() == 2
    torch.testing.assert_close(fast(**batch)["logits"], wanted, **NEAR)
    torch.testing.assert_close(fast.reference(**batch)["logits"], wanted, **NEAR)
    torch.testing.assert_close(torch.as_tensor(session(**arrays)["logits"]), wanted, rtol=0, atol=2e-5)
    assert (fast.recovered, session.recovered) == (2, 2)
    assert get_share(fast) == 0.5


def test_the_question_stays_where_answers_are_spans() -> None:
    base = tiny("bert")
    model = BertForQuestionAnswering(base.config).eval()
    batch = tiny_inputs("bert", batch=3, tokens=12, ragged=False)
    types = (torch.arange(12) >= torch.tensor([[4], [5], [7]])).long()
    batch = {**batch, "token_type_ids": types}
    gated = gatefx.prepare(model, MaskLoRA(rank=4), 0.5, example_inputs=batch).eval()
    for _, gate in token_gates(gated.graph_module):
        gate.updates.fill_(1)
    fast = gatefx.optimize(gated)
    hard = fast.reference_graph.get_submodule("hard_token_gate_1")
    seen: list[Any] = []
    handle = hard.register_forward_hook(lambda _m, _i, answer: seen.append(answer))
    answer, reference = fast(**batch), fast.reference(**batch)
    handle.remove()

    priority, counts = seen[-1]
    assert torch.equal(priority == torch.finfo(priority.dtype).max, types == 0)
    assert counts.tolist() == [6, 6, 7]
    kept = answer["start_logits"] > -1e30
    assert kept.sum(1).tolist() == [6, 6, 7]
    assert (kept | (types == 1)).all()
    torch.testing.assert_close(answer["start_logits"][kept], reference["start_logits"][kept], **NEAR)


def test_gates_of_a_decoder_are_fitted_and_not_trained() -> None:
    batch = tiny_inputs("llama", batch=2, tokens=6)
    gated = gatefx.prepare(tiny_decoder("llama"), "masklora", example_inputs=batch)
    with pytest.raises(MethodError, match="fitted, not trained"):
        gated.train()(**batch)
    gated.eval()(**batch)
