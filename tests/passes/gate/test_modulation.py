"""InsertModulation: one gate per token on every adapter's update, between scale and sum."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gatefx.errors import SiteError
from gatefx.models.configs.gatera import GateRA
from gatefx.models.modulation import Modulation
from gatefx.passes.find.modulations import find_modulated, modulations_of, update_sites
from gatefx.passes.gate.lora import AttachLora
from gatefx.passes.gate.modulation import InsertModulation
from gatefx.passes.graph.capture import capture
from gatefx.passes.graph.edit import shape_of

UPDATES = ["hira", "lora"]


@pytest.mark.parametrize("update", UPDATES)
def test_the_gate_stands_between_scale_and_sum(modulated: Any, checked: Any, update: str) -> None:
    result = checked(InsertModulation(GateRA(update=update)), modulated(update, gated=False))

    assert result.reports[0].op_changes == {"Modulation": 2, "mul.Tensor": 2}
    for index, item in enumerate(find_modulated(result.graph_module)):
        assert item.gate.target == f"modulation_{index}"
        assert item.product.args == (item.site.scaled, item.gate)
        assert item.site.factors == (item.product,)
        assert item.site.add.args == (item.site.base, item.product)
        assert [argument.target for argument in item.gate.args][1:] == ["attention_mask"]
        assert item.gate.args[0] is item.site.x


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_open_is_the_plain_adapter_and_shut_the_base_bit_for_bit(
    modulated: Any, capture_plain: Any, inputs: Any, update: str, dtype: torch.dtype
) -> None:
    graph = modulated(update, dtype=dtype)
    plain = modulated(update, gated=False, dtype=dtype)
    base = capture_plain(dtype=dtype)
    for other in (plain, base):
        other.load_state_dict(graph.state_dict(), strict=False)
    given = inputs(dtype=dtype).values()
    soft = graph(*given)["logits"]

    for bias, other in ((1e4, plain), (-1e4, base)):
        for gate in modulations_of(graph):
            gate.score.bias.data.fill_(bias)
        answered = graph(*given)["logits"]
        assert torch.equal(answered, other(*given)["logits"])
        assert not torch.equal(answered, soft)


def test_gates_of_one_token_each(modulated: Any, inputs: Any) -> None:
    graph = modulated()
    given = inputs()
    graph(*given.values())

    for gate in modulations_of(graph):
        assert gate.record is not None
        assert gate.record.gate.shape == (3, 5)
        assert torch.equal(gate.record.real, given["attention_mask"].float())


class Pooled(nn.Module):
    """A layer over tokens, then one over the first token alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 10)
        self.pooler = nn.Linear(10, 8)

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        real = attention_mask.to(x.dtype).unsqueeze(-1)
        return torch.tanh(self.pooler((self.first(x) * real)[:, 0]))


def test_a_pooled_state_has_a_gate_per_example(inputs: Any, checked: Any) -> None:
    graph = AttachLora(3, 6.0, 0.0, "all-linear")(capture(Pooled(), inputs()).graph_module).graph_module
    result = checked(InsertModulation(GateRA(update="lora")), graph).graph_module
    tokens, pooled = find_modulated(result)

    assert (len(tokens.gate.args), len(pooled.gate.args)) == (2, 1)
    assert shape_of(pooled.gate)[1:] == (1,)
    result(*inputs().values())
    assert [gate.record.gate.shape for gate in modulations_of(result) if gate.record] == [(3, 5), (3,)]


def test_it_joins_a_rank_gate(routed: Any, checked: Any) -> None:
    graph = checked(InsertModulation(GateRA(update="lora")), routed()).graph_module

    for site in update_sites(graph):
        assert site.gate is not None  # type: ignore[union-attr]  # these are LoRA sites
        assert len(site.factors) == 1


@pytest.mark.parametrize("update", UPDATES)
def test_gated_sites_are_declined(modulated: Any, checked: Any, update: str) -> None:
    graph = modulated(update)
    result = checked(InsertModulation(GateRA(update=update)), graph)

    assert result.graph_module is graph
    assert {d.where: d.reason for d in result.reports[0].declined} == {
        "first": "it has a modulation already",
        "second": "it has a modulation already",
    }


def test_a_graph_without_adapters_is_refused_with_the_next_step(capture_plain: Any) -> None:
    with pytest.raises(SiteError, match=r"no adapter whose update(.|\n)*gatefx\.prepare"):
        InsertModulation(GateRA())(capture_plain())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gates_take_the_state_s_dtype(modulated: Any, inputs: Any, dtype: torch.dtype) -> None:
    graph = modulated(dtype=dtype, gate_hidden=6)

    assert {value.dtype for value in graph.parameters()} == {dtype}
    assert graph(*inputs(dtype=dtype).values())["logits"].dtype == dtype
    assert [gate.hidden.out_features for gate in graph.modules() if isinstance(gate, Modulation)] == [6, 6]
