"""InsertAdapterWeights: one number on every adapter's update."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from gatefx.errors import SiteError
from gatefx.passes.find.adapter_weights import find_weighted, weights_by_name
from gatefx.passes.find.adapters import find_sites
from gatefx.passes.gate.adapter_weight import InsertAdapterWeights
from gatefx.passes.graph.capture import capture


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_of_one_are_the_plain_adapter_bit_for_bit(
    adapted: Any, checked: Any, inputs: Any, dtype: torch.dtype
) -> None:
    plain = adapted(dtype=dtype)
    result = checked(InsertAdapterWeights(), plain)
    given = inputs(dtype=dtype).values()

    assert result.reports[0].op_changes == {"AdapterWeight": 2, "mul.Tensor": 2}
    for item in find_weighted(result.graph_module):
        assert item.site.factors == (item.product,)
        assert item.product.args == (item.site.scaled, item.call)
        assert item.site.add.args == (item.site.base, item.product)
    assert torch.equal(result.graph_module(*given)["logits"], plain(*given)["logits"])


def test_a_weight_scales_its_own_update_alone(adapted: Any, inputs: Any) -> None:
    plain = adapted()
    graph = InsertAdapterWeights()(plain).graph_module
    weights_by_name(graph)["second"].omega.fill_(0.5)
    halved = adapted()
    halved.load_state_dict(plain.state_dict())
    halved.get_parameter("second.lora_B.default.weight").data.mul_(0.5)
    given = inputs().values()

    torch.testing.assert_close(graph(*given)["logits"], halved(*given)["logits"], rtol=0, atol=1e-6)


def test_half_precision_stays_half_precision(adapted: Any, inputs: Any) -> None:
    graph = InsertAdapterWeights()(adapted(dtype=torch.bfloat16)).graph_module

    assert {node.meta["val"].dtype for node in (item.product for item in find_weighted(graph))} == {torch.bfloat16}
    assert graph(*inputs(dtype=torch.bfloat16).values())["logits"].dtype == torch.bfloat16


def test_it_joins_a_rank_gate_and_declines_what_is_weighted(routed: Any, checked: Any) -> None:
    graph = checked(InsertAdapterWeights(), routed()).graph_module
    again = InsertAdapterWeights()(graph)

    assert all(site.gate is not None and len(site.factors) == 1 for site in find_sites(graph)[0])
    assert again.graph_module is graph
    assert {declined.reason for declined in again.reports[0].declined} == {"it has a weight already"}


class Twice(nn.Module):
    """One layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 12)

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        return torch.tanh(self.layer(torch.tanh(self.layer(x)))) * attention_mask.unsqueeze(-1)


def test_calls_of_one_layer_share_its_adapter_s_weight(checked: Any, inputs: Any) -> None:
    tuned = get_peft_model(Twice(), LoraConfig(r=2, target_modules=["layer"], init_lora_weights=False))  # type: ignore[arg-type]  # PEFT takes any module
    result = checked(InsertAdapterWeights(), capture(tuned, inputs()).graph_module)
    graph = result.graph_module.train()

    assert len(find_weighted(graph)) == 2
    assert [item.weight for item in find_weighted(graph)] == [*weights_by_name(graph).values()] * 2
    answer = next(iter(graph(*inputs().values()).values()))
    answer.sum().backward()
    assert next(iter(weights_by_name(graph).values())).take_gradient() != 0


def test_a_graph_without_adapters_is_refused(capture_plain: Any) -> None:
    with pytest.raises(SiteError, match=r"no adapter(.|\n)*gatefx\.prepare"):
        InsertAdapterWeights()(capture_plain())
