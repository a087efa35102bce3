"""Schedules for a budget in FLOPs: what they cost, which one is chosen, and what is refused."""

from __future__ import annotations

import copy
from functools import cache
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import gatefx
from gatefx.errors import BudgetError, MethodError
from gatefx.methods import Flops, MaskLoRA
from gatefx.models.hard_token_gate import HardTokenGate
from gatefx.models.tiny import tiny, tiny_inputs
from gatefx.passes.chain import Chain
from gatefx.passes.deployed import DeployedModel
from gatefx.passes.gate.token_cuts import PlaceTokenGates
from gatefx.passes.gate.token_scores import FeedTokenGates, token_gates
from gatefx.passes.gated import GatedModel
from gatefx.passes.harden.freeze import FreezeRegularization
from gatefx.passes.harden.settle_tokens import SettleTokenGates
from gatefx.passes.harden.token_gate import HardenTokenGates
from gatefx.passes.methods.masklora import TokenPruning
from gatefx.passes.methods.masklora_search import candidates, choose_schedule
from gatefx.passes.methods.masklora_trials import Trials

from ...sampling import rest_slow

NEAR = {"rtol": 0, "atol": 1e-5}


def batches(family: str = "bert") -> list[dict[str, Any]]:
    return [tiny_inputs(family, batch=3, tokens=14 + 5 * index, seed=index) for index in range(3)]


@cache
def prepared(family: str = "bert", **options: Any) -> GatedModel:
    """Adapters whose B shows, gates that were never trained; three layers in BERT. No test may change it."""
    torch.manual_seed(0)
    model = tiny(family, num_labels=3)
    if family == "bert":
        deeper = copy.deepcopy(model.config)
        deeper.num_hidden_layers = 3
        model = type(model)(deeper).eval()
    gated = gatefx.prepare(model, MaskLoRA(rank=4, **options), example_inputs=batches(family)[0])
    for name, value in gated.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(value, std=0.3)
    return gated.eval()


def spent(gated: GatedModel, asked: float, family: str = "bert") -> DeployedModel:
    return gatefx.optimize(gated, budget=Flops(asked), data=batches(family), distill_steps=5, progress=False)


@cache
def deployed(asked: float, family: str = "bert", **options: Any) -> DeployedModel:
    """Leave it as it is."""
    return spent(prepared(family, **options), asked, family)


def fact(fast: DeployedModel) -> dict[str, Any]:
    (found,) = fast.report.facts["schedule"].values()  # type: ignore[attr-defined]  # a mapping by method
    return found


def keep_of(row: dict[str, Any]) -> dict[int, float]:
    return {int(layer): share for layer, share in row["keep"].items()}


@cache
def trials() -> Trials:
    gated = prepared()
    return Trials(gated, gated.methods["masklora"].config, batches(), show=False)


def masked_alone(gated: GatedModel, keep: dict[int, float]) -> fx.GraphModule:
    """The masked graph with these cuts alone, pass by pass, with the predictors that the trials fitted."""
    config = MaskLoRA(rank=4, keep=keep)  # type: ignore[arg-type]  # a mapping is taken too
    budget = keep[max(keep)]
    graph = SettleTokenGates()(gated.graph_module).graph_module
    graph = FeedTokenGates(config)(PlaceTokenGates(config, budget)(graph).graph_module).graph_module
    fitted = trials().predictors(tuple(keep.items()))
    for _, gate in token_gates(graph):
        gate.predictor.load_state_dict(fitted[gate.layer].state_dict())
    frozen = Chain(graph).then(FreezeRegularization())
    return frozen.then(HardenTokenGates(budget, lambda gate: HardTokenGate(gate, config=config))).graph.eval()


def divergence_by_hand(full: fx.GraphModule, masked: fx.GraphModule) -> float:
    """Mean over batches of the mean over examples of Σ p·log(p/q)."""
    rows = []
    for batch in batches():
        p, q = (graph(*batch.values())["logits"].detach().double().softmax(-1).numpy() for graph in (full, masked))
        rows.append((p * np.log(p / q)).sum(-1).mean())
    return float(np.mean(rows))


def test_the_most_faithful_candidate_is_chosen() -> None:
    gated = prepared()
    choice = choose_schedule(trials(), MaskLoRA(), 0.85, show=False)
    full = FreezeRegularization()(SettleTokenGates()(gated.graph_module).graph_module).graph_module.eval()

    table = {trial.keep: divergence_by_hand(full, masked_alone(gated, dict(trial.keep))) for trial in choice.trials}

    assert [tuple(dict(keep)) for keep in table] == [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)]
    for trial in choice.trials:
        assert trial.divergence == pytest.approx(table[trial.keep], rel=1e-2, abs=1e-5)
    assert choice.chosen.keep == min(table, key=table.__getitem__)
    assert choice.chosen.divergence == min(trial.divergence for trial in choice.trials)


@pytest.mark.parametrize("asked", [0.95, 0.8, 0.65])
def test_every_candidate_is_predicted_to_cost_what_was_asked(asked: float) -> None:
    choice = choose_schedule(trials(), MaskLoRA(), asked, show=False)

    assert len({trial.keep for trial in choice.trials}) == len(choice.trials) > 1
    for trial in choice.trials:
        assert trial.predicted == pytest.approx(asked, abs=1e-9)
        assert all(0.1 <= share < 1 for _, share in trial.keep)
        assert all(later < earlier for (_, earlier), (_, later) in pairwise(trial.keep))
    assert choice.chosen.predicted <= choice.whole < choice.chosen.predicted + 0.1


def counted(model: DeployedModel, data: list[dict[str, Any]]) -> int:
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        for batch in data:
            model(**batch)
    return counter.get_total_flops()


@pytest.mark.parametrize("family", rest_slow(["bert", "t5"]))
def test_predictions_are_what_torch_counts_and_compaction_equals_the_mask(family: str) -> None:
    data = batches(family)
    fast = deployed(0.75, family)
    whole = gatefx.optimize(prepared(family), budget="100%", fold=True)

    share = counted(fast, data) / counted(whole, data)
    assert fact(fast)["predicted_whole_tokens"] == pytest.approx(share, rel=1e-9)
    assert share < 0.85
    for batch in data:
        torch.testing.assert_close(fast(**batch)["logits"], fast.reference(**batch)["logits"], **NEAR)


def test_a_smaller_budget_never_costs_more() -> None:
    asked = np.linspace(0.3, 0.99, 24)
    predicted = [choose_schedule(trials(), MaskLoRA(), float(share), show=False).chosen.predicted for share in asked]

    assert all(less <= more for less, more in pairwise(predicted))
    np.testing.assert_allclose(predicted, asked, atol=1e-9)


def test_the_report_tells_the_schedule_and_the_model_keeps_it() -> None:
    fast = deployed(0.75)
    found = fact(fast)
    keep = keep_of(found)

    assert fast.methods["masklora"] == MaskLoRA(rank=4, keep=keep)  # type: ignore[arg-type]
    assert fast.budget == keep[max(keep)]
    assert [row["layer"] for row in fast.report.facts["masklora"]["cuts"]] == list(keep)  # type: ignore[index]
    assert any("75.0% of the FLOPs buy a schedule" in note for note in fast.report.notes)
    assert found["divergence"] == min(row["divergence"] for row in found["candidates"])


def test_choices_do_not_depend_on_the_global_generator() -> None:
    torch.manual_seed(5)
    again, fast = spent(prepared(), 0.75), deployed(0.75)

    assert fact(again) == fact(fast)
    assert torch.equal(again(**batches()[1])["logits"], fast(**batches()[1])["logits"])


def test_trained_gates_are_chosen_among_and_kept() -> None:
    gated = copy.deepcopy(prepared(keep=((0, 0.8), (2, 0.5))))
    for _, gate in token_gates(gated.graph_module):
        gate.updates.fill_(7)
        torch.nn.init.normal_(gate.predictor.score.weight)
    before = copy.deepcopy(gated.state_dict())
    fast = spent(gated, 0.7)
    found = fact(fast)

    assert [tuple(keep_of(row)) for row in found["candidates"]] == [(0,), (0, 2), (0, 2)], "after layer 2 is too late"
    as_trained = keep_of(found["candidates"][-1])
    assert np.log(as_trained[0]) / np.log(as_trained[2]) == pytest.approx(np.log(0.8) / np.log(0.5))
    assert "fitted" not in fast.report.facts
    assert all(torch.equal(value, before[name]) for name, value in gated.state_dict().items())
    assert gated.methods["masklora"].config.keep == ((0, 0.8), (2, 0.5))


@pytest.mark.slow
def test_a_given_schedule_says_where_alone_an_untrained_model_is_cut() -> None:
    found = fact(deployed(0.7, keep=((0, 0.8), (2, 0.5))))

    assert {tuple(keep_of(row)) for row in found["candidates"]} == {(0,), (0, 2)}


def test_padding_is_no_saving() -> None:
    padded = [{name: torch.nn.functional.pad(value, (0, 30)) for name, value in batch.items()} for batch in batches()]
    gated = prepared()
    other = Trials(gated, MaskLoRA(rank=4), padded, show=False)
    keep = ((0, 0.6), (1, 0.3))

    assert other.cost.share(keep) == trials().cost.share(keep)
    assert other.cost.share(((0, 1.0),)) > 1, "a predictor that saves nothing costs"


def test_equal_divergences_go_to_the_fewest_cuts_then_to_the_earliest() -> None:
    cost = SimpleNamespace(share=lambda keep, whole=False: keep[-1][1])  # a cost's signature
    level: Any = SimpleNamespace(layers=(1, 2, 3), cost=cost, divergence=lambda _keep: 0.25)

    choice = choose_schedule(level, MaskLoRA(), 0.5, show=False)

    assert len(choice.trials) == 6
    assert [layer for layer, _ in choice.chosen.keep] == [1]


def test_candidates_are_single_cuts_pairs_and_the_given_shape() -> None:
    shapes = candidates(range(12), ((1, 0.8), (4, 0.5), (7, 0.2)))

    assert [shape.layers for shape in shapes[:12]] == [(layer,) for layer in range(12)]
    pairs = [shape.layers for shape in shapes[12:-1]]
    assert len(pairs) == 28
    assert (0, 11) in pairs
    assert [share for _, share in shapes[-1].keep(0.2)] == pytest.approx([0.8, 0.5, 0.2])
    assert shapes[12].keep(0.25) == ((0, 0.5), (2, 0.25))


def test_what_cannot_be_spent_is_refused_with_the_range() -> None:
    for asked in (0.05, 1, 1.5):
        with pytest.raises(BudgetError, match=r"0\.\d+ to less than 1 \(cuts after layers 0, 1, 2, none keeping"):
            choose_schedule(trials(), MaskLoRA(), asked, show=False)
    with pytest.raises(BudgetError, match=r"none keeping less than 0\.9"):
        choose_schedule(trials(), MaskLoRA(floor=0.9), 0.5, show=False)


def test_the_lowest_budget_of_the_range_can_be_spent() -> None:
    least = choose_schedule(trials(), MaskLoRA(), 0.9, show=False).least

    assert choose_schedule(trials(), MaskLoRA(), least, show=False).chosen.keep == ((0, 0.1),)
    with pytest.raises(BudgetError):
        choose_schedule(trials(), MaskLoRA(), least - 1e-3, show=False)


def test_flops_are_refused_where_nothing_can_be_chosen() -> None:
    with pytest.raises(BudgetError, match="chosen by what it does to data"):
        gatefx.optimize(prepared(), budget=Flops(0.7))
    with pytest.raises(MethodError, match="chosen by FLOPs for predicted scores"):
        TokenPruning(MaskLoRA(scores="path"), 0.5).spend(prepared(), Flops(0.7), batches(), show=False)
    with pytest.raises(BudgetError, match="spent by optimize"):
        TokenPruning.resolve_budget(MaskLoRA(), Flops(0.7), prepared().graph_module)
    with pytest.raises(BudgetError, match="This budget is a share"):
        deployed(0.75).budget = Flops(0.5)
    for wrong in (0, -1, "60%", float("nan"), True):
        with pytest.raises(BudgetError, match=r"Flops\("):
            Flops(wrong)  # type: ignore[arg-type]


def test_other_methods_beside_it_keep_their_budgets_and_take_no_flops() -> None:
    model = tiny("bert", num_labels=3)
    methods = [gatefx.CCM(rank=4, d_router=8), MaskLoRA(rank=4)]
    gated = gatefx.prepare(model, methods, {"ccm": 2}, example_inputs=batches()[0]).eval()
    for name, value in gated.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(value, std=0.3)
    options: Any = {"data": batches(), "distill_steps": 3, "progress": False}
    fast = gatefx.optimize(gated, budget={"masklora": Flops(0.7)}, **options)

    assert fast.budgets["ccm"] == 2
    assert fact(fast)["predicted"] == pytest.approx(0.7)
    batch = batches()[0]
    torch.testing.assert_close(fast(**batch)["logits"], fast.reference(**batch)["logits"], **NEAR)
    with pytest.raises(BudgetError, match="ccm takes no budget in FLOPs"):
        gatefx.optimize(gated, budget={"ccm": Flops(0.7)}, **options)
    with pytest.raises(BudgetError, match="Several methods need a budget each"):
        gatefx.optimize(gated, budget=Flops(0.7), **options)
