"""Every combination of options trains; the schedule follows the run."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import gatefx
from gatefx.errors import InputError, UntrainedGateError
from gatefx.models.tiny import tiny, tiny_inputs
from gatefx.passes.gated import GatedModel
from gatefx.passes.methods.ccm_diagnostics import layer_ranks
from gatefx.passes.methods.ccm_schedule import records_of, routers_of

from .sampling import rest_slow

BATCH = tiny_inputs("bert", batch=8, tokens=6)
LABELS = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1])


def gated_of(**options: Any) -> GatedModel:
    torch.manual_seed(0)
    config = gatefx.CCM(**{"rank": 4, "d_router": 8, "target_modules": ("query", "value"), **options})
    return gatefx.prepare(tiny("bert"), config, budget=2, example_inputs=BATCH)


def fit(gated: GatedModel, steps: int) -> list[float]:
    """Train on one batch; the task's loss in eval mode before and after."""
    losses = [float(gated.eval()(**BATCH, labels=LABELS).loss.detach())]
    optimiser = torch.optim.AdamW([p for p in gated.parameters() if p.requires_grad], lr=5e-3)
    schedule = gated.schedule(steps)
    gated.train()
    for _ in range(steps):
        loss = gated(**BATCH, labels=LABELS).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    losses.append(float(gated.eval()(**BATCH, labels=LABELS).loss.detach()))
    return losses


#: Every value of every option at least once, gates and regularizers crossed.
COMBINATIONS = [
    {"gate": "topk", "regularizer": "l0", "pool": "mean", "heads": "per_module"},
    {"gate": "topk", "regularizer": "kl", "pool": "attention", "heads": "per_layer", "k": "fixed"},
    {"gate": "topk", "regularizer": "entropy", "pool": "cls", "heads": "shared", "router_input": "site"},
    {"gate": "hard_concrete", "regularizer": "l0", "pool": "max", "heads": "per_layer", "prefix": 3},
    {"gate": "hard_concrete", "regularizer": "kl", "pool": "mean", "router_input": "site", "schedule": "linear"},
    {"gate": "hard_concrete", "regularizer": "entropy", "pool": "attention", "heads": "shared", "smoothness": 0.1},
    {"gate": "soft", "regularizer": "l0", "pool": "cls", "schedule": "constant", "lora_dropout": 0.1},
    {"gate": "soft", "regularizer": "kl", "pool": "max", "heads": "per_module", "k_min": 2},
    {"gate": "soft", "regularizer": "entropy", "pool": "attention", "prefix": 2, "heads": "shared"},
]


@pytest.mark.parametrize("options", rest_slow(COMBINATIONS, 4), ids=lambda o: "-".join(map(str, o.values())))
def test_three_steps_lower_the_loss_and_move_every_part(options: Any) -> None:
    gated = gated_of(**options)
    before = {name: p.detach().clone() for name, p in gated.named_parameters()}

    first, last = fit(gated, 3)

    assert last < first
    moved = {name for name, p in gated.named_parameters() if not torch.equal(p, before[name])}
    assert moved <= {name for name, p in gated.named_parameters() if p.requires_grad}
    for part in (
        "lora_A",
        "lora_B",
        "trunk",
        "heads",
        "classifier",
        *(["query"] if options["pool"] == "attention" else []),
    ):
        assert any(part in name for name in moved), part


def test_the_schedule_cools_and_records() -> None:
    gated = gated_of()
    fit(gated, 4)
    schedule = gated.schedule(8)

    assert float(routers_of(gated.graph_module)[0].temperature) == pytest.approx(0.6), (
        "four of eight steps, cosine 1.0 → 0.2"
    )
    gated.train()(**BATCH, labels=LABELS)
    row = schedule.step()
    assert schedule.history == [row]
    assert (row.step, row.collapse) == (5, row.collapse)
    assert 1 <= row.ranks.mean <= 4
    assert row.temperature == pytest.approx(0.6)
    assert schedule.collapse_rate() in (0.0, 1.0)


def test_coverage_brings_the_mean_rank_to_the_budget() -> None:
    gated = gated_of(coverage_rate=0.5, schedule="constant")
    fit(gated, 20)

    gated.train()(**BATCH, labels=LABELS)
    assert float(torch.cat([r.count.detach() for r in records_of(gated.graph_module)], 1).mean()) == pytest.approx(
        2.0, abs=0.6
    )


def test_layer_ranks_are_booked_on_their_layers() -> None:
    for router_input in ("first_site", "site"):
        gated = gated_of(router_input=router_input)
        gated.eval()(**BATCH)
        assert list(layer_ranks(gated)) == ["bert.encoder.layer.0", "bert.encoder.layer.1"]


def test_records_before_a_call_are_refused() -> None:
    with pytest.raises(UntrainedGateError, match="call the model on a batch first"):
        records_of(gated_of().graph_module)


def test_a_run_resumed_from_a_state_dict_goes_on_where_it_was() -> None:
    straight, first = gated_of(), gated_of()
    first.load_state_dict(straight.state_dict())

    def run(gated: GatedModel, optimiser: torch.optim.Optimizer, steps: int) -> None:
        schedule = gated.schedule(6)
        for _ in range(steps):
            optimiser.zero_grad()
            gated.train()(**BATCH, labels=LABELS).loss.backward()
            optimiser.step()
            schedule.step()

    def optimiser_of(gated: GatedModel) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in gated.parameters() if p.requires_grad], lr=5e-3)

    torch.manual_seed(3)
    whole = optimiser_of(straight)
    run(straight, whole, 6)
    second = gated_of()
    torch.manual_seed(3)
    half = optimiser_of(first)
    run(first, half, 3)
    second.load_state_dict(first.state_dict())
    rest = optimiser_of(second)
    rest.load_state_dict(half.state_dict())
    run(second, rest, 3)

    for name, value in straight.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_the_callback_wants_a_gated_model() -> None:
    callback = gatefx.GateCallback()

    with pytest.raises(InputError, match=r"no gated model(.|\n)*gatefx\.prepare"):
        callback.on_train_begin(None, None, None, model=tiny("bert"))
