"""Modulations: one gate per token, recorded apart by phase; their deployed forms; their terms of the objective."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatefx.errors import MethodError
from gatefx.models.configs.gatera import GateRA
from gatefx.models.gate_records import last_records
from gatefx.models.modulation import HardModulation, Modulation, SoftModulation, binary_entropy
from gatefx.models.modulation_objective import mean_entropy, mean_gate

WIDTH = 6


def gate(budget: float | None = None, **options: object) -> Modulation:
    module = Modulation(GateRA(**options), width=WIDTH, budget=budget).double()  # type: ignore[arg-type]
    torch.nn.init.normal_(module.score.weight)
    return module


def states(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, WIDTH, dtype=torch.float64)


@pytest.mark.parametrize("hidden", [0, 5])
@pytest.mark.parametrize("shape", [(2,), (2, 3), (2, 3, 4)])
def test_one_number_per_token_in_the_state_s_type(hidden: int, shape: tuple[int, ...]) -> None:
    module = gate(gate_hidden=hidden)
    g = module(states(*shape))

    assert g.shape == (*shape, 1)
    assert g.dtype == torch.float64
    assert bool(((g > 0) & (g < 1)).all())
    assert module.bfloat16()(states(*shape).bfloat16()).dtype == torch.bfloat16


def test_records_stand_apart_by_phase() -> None:
    module = gate()
    module(states(2, 4))
    prompt = module.record
    module(states(2, 1))

    assert module.prefill is prompt
    assert module.decode is module.record is not prompt
    module(states(3))  # pooled, not decoded
    assert module.prefill is module.record
    assert module.decode is not None
    assert module.decode.gate.shape == (2, 1)


def test_padding_is_not_counted() -> None:
    module = gate()
    x, mask = states(2, 3), torch.tensor([[1, 1, 0], [1, 0, 0]])
    g = module(x, mask)[..., 0]

    records = last_records([module])
    real = g[mask.bool()]
    assert float(records[0].count) == 3
    torch.testing.assert_close(mean_gate(records), real.mean())
    entropy = -(real * real.log() + (1 - real) * (1 - real).log())
    torch.testing.assert_close(mean_entropy(records), entropy.mean())
    torch.testing.assert_close((records[0].mean, records[0].entropy), (real.mean(), entropy.mean()))
    assert torch.equal(g, module(x)[..., 0]), "the mask must change the record alone"


@settings(max_examples=30, deadline=None)
@given(st.floats(-800, 800))
def test_entropy_stays_finite_and_in_its_bounds(z: float) -> None:
    value = torch.tensor(z, dtype=torch.float64, requires_grad=True)
    entropy = binary_entropy(value)
    entropy.backward()

    assert -1e-12 <= float(entropy.detach()) <= math.log(2) + 1e-12
    assert value.grad is not None
    assert math.isfinite(float(value.grad))


def test_the_multiplier_follows_the_budget() -> None:
    module = gate(budget=0.5, penalty_rate=0.2)
    module.observe(0.75)
    assert float(module.multiplier) == pytest.approx(0.05)
    for _ in range(3):
        module.observe(0.25)
    assert float(module.multiplier) == pytest.approx(-0.1)
    assert int(module.updates) == 4


def test_hard_is_the_threshold_and_soft_the_gate() -> None:
    module = gate()
    x = states(2, 7)
    g = module(x)

    assert torch.equal(SoftModulation(module)(x), g)
    for threshold in (0.3, 0.5, 0.8):
        level = torch.tensor(math.log(threshold / (1 - threshold)), dtype=torch.float64)
        assert torch.equal(HardModulation(module)(x, level), g[..., 0] >= threshold)


def test_saturated_gates_keep_their_order() -> None:
    module = gate().float()
    x = states(1, 5).float()
    with torch.no_grad():
        module.score.bias.fill_(60.0)
    assert bool((module(x) == 1).all())
    level = module.logits(x).median().detach()

    assert int(HardModulation(module)(x, level).sum()) == 3


def test_only_a_gate_without_weights_is_constant() -> None:
    module = gate()
    assert module.constant() is None
    torch.nn.init.zeros_(module.score.weight)
    torch.nn.init.constant_(module.score.bias, 0.7)
    assert module.constant() == pytest.approx(1 / (1 + math.exp(-0.7)))
    assert SoftModulation(module).constant() == module.constant()


@pytest.mark.parametrize("hidden", [0, 3])
def test_a_fresh_gate_is_one_half_and_known_as_such_after_casts_and_files(hidden: int) -> None:
    fresh = Modulation(GateRA(gate_hidden=hidden), width=WIDTH, budget=None)
    assert bool((fresh(states(2, 3).float()) == 0.5).all())
    assert not fresh.has_moved()
    assert not fresh.bfloat16().double().has_moved()
    read = Modulation(GateRA(gate_hidden=hidden), width=WIDTH, budget=None)
    read.load_state_dict(fresh.state_dict())
    assert not read.has_moved()


@pytest.mark.parametrize("hidden", [0, 3])
def test_one_step_moves_a_fresh_gate(hidden: int) -> None:
    module = Modulation(GateRA(gate_hidden=hidden), width=WIDTH, budget=None).double()
    torch.autograd.backward((module(states(2, 3)) * states(2, 3)[..., :1]).sum())
    torch.optim.SGD(module.parameters(), 1e-3).step()

    assert module.has_moved()


def test_copies_leave_records_behind() -> None:
    module = gate()
    module(states(2, 3))
    copied = copy.deepcopy(module)

    assert copied.record is copied.prefill is None
    assert module.record is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"update": "dora"}, "no update 'dora'"),
        ({"gate": "topk"}, "no gate 'topk'"),
        ({"threshold": 1}, "threshold is out of range"),
        ({"threshold": 0.0}, "threshold is out of range"),
        ({"gate_hidden": 1.5}, "gate_hidden is out of range"),
        ({"entropy_weight": -1}, "entropy_weight is out of range"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, object], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        GateRA(**options)  # type: ignore[arg-type]


def test_a_hira_update_has_no_scale_of_its_own() -> None:
    assert GateRA(rank=8).scale == 1
    assert GateRA(rank=8, update="lora").scale == 2
    assert GateRA(rank=8, alpha=4).scale == 0.5
