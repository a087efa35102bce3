"""GateRA's terms of the objective: entropy, and the budget from both sides."""

from __future__ import annotations

import pytest
import torch

from gatefx.errors import UntrainedGateError
from gatefx.models.configs.gatera import GateRA
from gatefx.models.gate_records import last_records
from gatefx.models.modulation import Modulation
from gatefx.models.modulation_objective import mean_entropy, modulation_loss

WIDTH = 6


def gate(budget: float | None = None, **options: object) -> Modulation:
    module = Modulation(GateRA(**options), width=WIDTH, budget=budget).double()  # type: ignore[arg-type]
    torch.nn.init.normal_(module.score.weight)
    return module


def states(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, WIDTH, dtype=torch.float64)


def test_the_objective_adds_up_over_sites_and_tokens() -> None:
    first, second = (gate(budget=0.25, entropy_weight=0.3, penalty=2.0) for _ in range(2))
    first(states(2, 3))
    second(states(4, 5))
    first.multiplier.fill_(-0.7)
    records = last_records([first, second])
    g = torch.cat([record.gate.flatten() for record in records])

    wanted = 0.3 * -(g * g.log() + (1 - g) * (1 - g).log()).mean()
    wanted = wanted - 0.7 * (g.mean() - 0.25) + 2.0 * (g.mean() - 0.25) ** 2
    torch.testing.assert_close(modulation_loss([first, second]), wanted)


def test_without_a_budget_there_is_entropy_alone() -> None:
    module = gate(entropy_weight=0.3, penalty=2.0)
    module(states(2, 3))

    torch.testing.assert_close(modulation_loss([module]), 0.3 * mean_entropy(last_records([module])))


def test_an_uncalled_gate_has_no_loss() -> None:
    with pytest.raises(UntrainedGateError, match="decided nothing yet"):
        modulation_loss([gate()])
