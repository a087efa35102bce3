"""HardenModulations and KeepModulations: deployed gates, as a threshold or as they are."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from gatefx.errors import PassError
from gatefx.passes.find.modulations import find_modulated, modulations_of
from gatefx.passes.harden.freeze import FreezeRegularization
from gatefx.passes.harden.modulation import LEVEL, HardenModulations, KeepModulations
from gatefx.passes.pipeline import Pipeline

UPDATES = ["hira", "lora"]


def hard(level: float = 0.0) -> Pipeline:
    return Pipeline((HardenModulations(level),), assumes=("FreezeRegularization",))


def soft() -> Pipeline:
    return Pipeline((KeepModulations(),), assumes=("FreezeRegularization",))


@pytest.mark.parametrize("update", UPDATES)
def test_the_hard_graph(modulated: Any, checked: Any, update: str) -> None:
    result = checked(hard(), modulated(update))

    report = result.reports[0]
    assert report.fired == ("first", "second")
    assert report.op_changes == {"HardModulation": 2, "Modulation": -2, "to.dtype": 2, "unsqueeze.default": 2}
    assert "approximate" in report.exactness
    assert [item.gate.target for item in find_modulated(result.graph_module)] == [
        "hard_modulation_0",
        "hard_modulation_1",
    ]
    assert not modulations_of(result.graph_module)


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.9])
def test_hard_gates_are_the_threshold_of_the_soft_ones(
    modulated: Any, inputs: Any, update: str, threshold: float
) -> None:
    graph = modulated(update, dtype=torch.float64)
    hardened = hard(math.log(threshold / (1 - threshold)))(graph).graph_module
    seen: list[torch.Tensor] = []
    hardened.get_submodule("hard_modulation_0").register_forward_hook(lambda *call: seen.append(call[2]))
    given = inputs(dtype=torch.float64).values()
    graph(*given)
    hardened(*given)

    record = modulations_of(graph)[0].record
    assert record is not None
    assert torch.equal(seen[0], record.gate >= threshold)


@pytest.mark.parametrize("update", UPDATES)
def test_hard_equals_soft_where_gates_are_zero_or_one(modulated: Any, inputs: Any, tolerance: Any, update: str) -> None:
    graph = modulated(update, dtype=torch.float64)
    for gate in modulations_of(graph):
        gate.score.weight.data.mul_(1e8)
    given = inputs(8, 6, dtype=torch.float64).values()
    wanted = graph(*given)["logits"]
    gates = torch.cat([m.record.gate.flatten() for m in modulations_of(graph) if m.record])

    assert set(gates.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(
        hard()(graph).graph_module(*given)["logits"], wanted, rtol=0, atol=tolerance[torch.float64]
    )


@pytest.mark.parametrize("update", UPDATES)
def test_soft_is_the_trained_graph_bit_for_bit(modulated: Any, checked: Any, inputs: Any, update: str) -> None:
    graph = modulated(update)
    result = checked(soft(), graph)

    assert result.reports[0].op_changes == {"Modulation": -2, "SoftModulation": 2}
    given = inputs().values()
    assert torch.equal(result.graph_module(*given)["logits"], graph(*given)["logits"])


def test_one_level_moves_every_site(modulated: Any, inputs: Any) -> None:
    graph = modulated()
    hardened = hard()(graph).graph_module
    plain, base = ({"open": -1e6, "shut": 1e6}[name] for name in ("open", "shut"))
    given = inputs().values()
    for level, bias in ((plain, 1e4), (base, -1e4)):
        getattr(hardened, LEVEL).fill_(level)
        wanted = modulated()
        for gate in modulations_of(wanted):
            gate.score.bias.data.fill_(bias)
        wanted.load_state_dict(
            {k: v for k, v in graph.state_dict().items() if not k.startswith("modulation_")}, strict=False
        )
        assert torch.equal(hardened(*given)["logits"], wanted(*given)["logits"])


def test_a_graph_without_gates_stays(modulated: Any, checked: Any) -> None:
    graph = modulated(gated=False)
    for item in (hard(), soft()):
        assert checked(item, graph).graph_module is graph


def test_both_must_follow_freezing() -> None:
    for item in (HardenModulations(0.0), KeepModulations()):
        with pytest.raises(PassError, match="must run after FreezeRegularization"):
            Pipeline((item, FreezeRegularization()))
