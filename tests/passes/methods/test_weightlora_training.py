"""The choice in training: what it does to optimiser and model, and that it resumes exactly."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch

import gatefx
from gatefx.errors import InputError, MethodError
from gatefx.models.configs.ccm import CCM
from gatefx.models.configs.weightlora import WeightLoRA
from gatefx.models.iterative_thresholding import kept_overlap
from gatefx.models.tiny import tiny, tiny_inputs
from gatefx.passes.gated import GatedModel
from gatefx.passes.methods.weightlora_training import SelectionSchedule, adapter_parameters

from ...sampling import rest_slow

LABELS = torch.tensor([0, 1, 2, 0])
DATA = [tiny_inputs("bert", batch=4, tokens=5 + 2 * index, seed=index) for index in range(3)]
STEPS = 20


def prepared(plus: bool = False, seed: int = 0) -> GatedModel:
    torch.manual_seed(seed)
    config = WeightLoRA(plus=plus, rank=4)
    return gatefx.prepare(tiny("bert", num_labels=3), config, example_inputs=DATA[0]).train()


def optimiser_of(gated: GatedModel) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in gated.parameters() if p.requires_grad], 1e-2)


def train(gated: GatedModel, optimiser: torch.optim.Optimizer, schedule: Any, steps: range) -> None:
    for index in steps:
        torch.manual_seed(index)
        optimiser.zero_grad()
        gated(**DATA[index % 3], labels=LABELS)["loss"].backward()
        optimiser.step()
        schedule.step()


@pytest.mark.parametrize("plus", rest_slow([True, False]))
def test_the_optimiser_forgets_dropped_adapters_and_restarts_kept_ones(plus: bool) -> None:
    gated = prepared(plus)
    optimiser = optimiser_of(gated)
    rates = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 / (1 + step))
    groups, (group,) = optimiser.param_groups, optimiser.param_groups
    schedule = gated.schedule(STEPS, optimiser)
    assert isinstance(schedule, SelectionSchedule)
    train(gated, optimiser, schedule, range(4))
    before = list(group["params"])
    train(gated, optimiser, schedule, range(4, 5))
    chosen = schedule.selection
    assert chosen is not None

    assert optimiser.param_groups is groups
    assert groups[0] is group
    gone = adapter_parameters(gated.graph_module, chosen.dropped)
    own = adapter_parameters(gated.graph_module, chosen.kept)
    held = {id(parameter) for parameter in group["params"]}
    assert not held & {id(parameter) for parameter in gone}
    assert held >= {id(parameter) for parameter in own}
    assert len(group["params"]) == len(before) - len(gone)
    assert not any(parameter in optimiser.state for parameter in (*gone, *own))
    assert len(optimiser.state) == len(group["params"]) - len(own)
    assert chosen.optimizer_bytes == sum(2 * 4 * parameter.numel() + 4 for parameter in gone)
    assert chosen.parameters_left == sum(parameter.numel() for parameter in own)
    rates.step()
    assert group["lr"] == pytest.approx(5e-3)
    train(gated, optimiser, schedule, range(5, 7))
    assert all(parameter in optimiser.state for parameter in own)
    assert schedule.figures() == {"adapters_active": 6.0, "adapters_final": 1.0}


@pytest.mark.parametrize("plus", rest_slow([True, False]))
def test_a_run_resumed_in_the_warm_up_goes_on_bit_for_bit(plus: bool) -> None:
    gated = prepared(plus)
    optimiser = optimiser_of(gated)
    schedule = gated.schedule(STEPS, optimiser)
    train(gated, optimiser, schedule, range(3))
    saved = copy.deepcopy((gated.state_dict(), optimiser.state_dict()))
    train(gated, optimiser, schedule, range(3, 9))

    again = prepared(plus, seed=7)
    other = optimiser_of(again)
    again.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    train(again, other, again.schedule(STEPS, other), range(3, 9))

    wanted = gated.state_dict()
    assert again.state_dict().keys() == wanted.keys()
    assert all(torch.equal(value, wanted[name]) for name, value in again.state_dict().items())


def test_a_run_resumed_after_the_choice_goes_on_bit_for_bit() -> None:
    gated = prepared()
    optimiser = optimiser_of(gated)
    schedule = gated.schedule(STEPS, optimiser)
    train(gated, optimiser, schedule, range(7))
    saved = copy.deepcopy((gated.state_dict(), optimiser.state_dict()))
    train(gated, optimiser, schedule, range(7, 10))

    again = prepared(seed=7)
    other = optimiser_of(again)
    again.load_state_dict(saved[0])
    resumed = again.schedule(STEPS, other)  # takes what was dropped out of the optimiser, whose state then fits
    other.load_state_dict(saved[1])
    train(again, other, resumed, range(7, 10))

    wanted = gated.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in again.state_dict().items())


def kept_in_report(seed: int) -> set[str]:
    """What a run of its own seed kept, as a program reads it from the deployed model's report."""
    gated = prepared(seed=seed)
    optimiser = optimiser_of(gated)
    train(gated, optimiser, gated.schedule(STEPS, optimiser), range(6))
    facts = json.loads(json.dumps(gatefx.optimize(gated.eval()).report.to_json()))["facts"]["weightlora"]
    assert not set(facts["kept"]) & set(facts["dropped"])
    return set(facts["kept"])


def test_runs_of_two_seeds_are_compared_by_the_sets_in_their_reports() -> None:
    first, other = kept_in_report(0), kept_in_report(1)
    shared = sum(name in other for name in first)

    assert len(first) == len(other) == 6
    assert kept_overlap(first, other) == pytest.approx(shared / (12 - shared))
    assert 0 < kept_overlap(first, other) < 1, "seeds keep partly the same adapters"


def test_gradients_of_several_batches_count_as_one_step() -> None:
    chosen = []
    for parts in (1, 2):
        gated = prepared()
        optimiser = optimiser_of(gated)
        schedule = gated.schedule(STEPS, optimiser)
        gated.eval()
        for module in gated.graph_module.modules():
            module.training = type(module).__name__ == "AdapterWeight"
        for _ in range(2):
            optimiser.zero_grad()
            for rows in torch.arange(4).chunk(parts):
                inputs = {name: value[rows] for name, value in DATA[0].items()}
                (gated(**inputs, labels=LABELS[rows])["loss"] / parts).backward()
            optimiser.step()
            schedule.step()
        assert isinstance(schedule, SelectionSchedule)
        chosen.append(list(schedule.history[-1].omega.values()))

    assert chosen[0] == pytest.approx(chosen[1], abs=1e-2)


def test_the_optimiser_is_needed_and_must_be_the_model_s() -> None:
    gated = prepared()
    with pytest.raises(InputError, match=r"needs the optimiser(.|\n)*gated\.schedule\(total_steps, optimizer\)"):
        gated.schedule(STEPS)
    stranger = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], 0.1)
    with pytest.raises(InputError, match="trains none of the model's adapters"):
        gated.schedule(STEPS, stranger)


def test_doubled_ranks_and_gates_on_ranks_exclude_each_other() -> None:
    methods = [WeightLoRA(plus=True, rank=4), CCM(rank=4)]
    gated = gatefx.prepare(tiny("bert", num_labels=3), methods, {"ccm": 2}, example_inputs=DATA[0])
    with pytest.raises(MethodError, match=r"doubles ranks(.|\n)*weightlora"):
        gated.schedule(STEPS, optimiser_of(gated))
