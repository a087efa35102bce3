"""FoldAdapters: an ungated adapter becomes its layer's weight."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gatefx.models.tiny import tiny, tiny_inputs
from gatefx.passes.find.adapters import find_sites
from gatefx.passes.graph.canonical import canonical_text
from gatefx.passes.graph.capture import capture
from gatefx.passes.graph.signature import signature_of
from gatefx.passes.harden.freeze import FreezeRegularization
from gatefx.passes.simplify.fold_adapters import FoldAdapters

peft = pytest.importorskip("peft")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_graph_is_the_bare_module_s_with_other_weights(
    adapted: Any, capture_plain: Any, checked: Any, inputs: Any, tolerance: Any, dtype: torch.dtype
) -> None:
    graph = adapted(dtype=dtype)
    result = checked(FoldAdapters(), graph)

    bare = canonical_text(capture_plain(dtype=dtype))
    assert canonical_text(result.graph_module).replace("merged_weight", "weight") == bare
    given = inputs(4, 6, dtype=dtype).values()
    torch.testing.assert_close(
        result.graph_module(*given)["logits"], graph(*given)["logits"], rtol=0, atol=tolerance[dtype]
    )


def test_only_named_sites_are_folded(adapted: Any, checked: Any) -> None:
    result = checked(FoldAdapters(("second",)), adapted())

    assert result.reports[0].fired == ("second",)
    assert [site.name for site in find_sites(result.graph_module)[0]] == ["first"]


@pytest.mark.parametrize("sites", [(), ("nonsense",)])
def test_nothing_named_is_the_same_object(adapted: Any, checked: Any, sites: Any) -> None:
    graph = adapted()

    assert checked(FoldAdapters(sites), graph).graph_module is graph


def test_gated_sites_are_refused(routed: Any, checked: Any) -> None:
    graph = routed()
    result = checked(FoldAdapters(), graph)

    assert result.graph_module is graph
    assert all("decides per example" in d.reason for d in result.reports[0].declined)


def test_sites_in_dropout_are_refused_until_it_is_frozen(adapted: Any, checked: Any) -> None:
    graph = adapted(dropout=0.5)
    result = checked(FoldAdapters(), graph)

    assert result.graph_module is graph
    assert all("freeze the graph first" in d.reason for d in result.reports[0].declined)
    assert len(checked(FoldAdapters(), FreezeRegularization()(graph).graph_module).reports[0].fired) == 2


def test_a_layer_whose_weight_is_read_elsewhere_is_refused(capture_plain: Any, checked: Any) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.Linear(12, 12)
            self.lora_A, self.lora_B = nn.Linear(12, 3, bias=False), nn.Linear(3, 12, bias=False)

        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            return self.proj(torch.tanh(self.proj(x) + self.lora_B(self.lora_A(x))))

    graph = capture_plain(Shared())
    result = checked(FoldAdapters(), graph)

    assert result.graph_module is graph
    assert "read in several places" in result.reports[0].declined[0].reason


def test_two_adapters_on_a_layer_fold_one_after_the_other(
    plain: nn.Module, capture_plain: Any, checked: Any, inputs: Any, tolerance: Any
) -> None:
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=["first", "second"])
    model = peft.get_peft_model(plain.double(), config)
    model.add_adapter("other", config)
    model.base_model.set_adapter(["default", "other"])
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.3)
    graph = capture_plain(model.eval(), dtype=torch.float64)

    result = checked(FoldAdapters(), graph)

    assert len(result.reports[0].fired) == 4
    given = inputs(4, 6, dtype=torch.float64).values()
    wanted = model(**inputs(4, 6, dtype=torch.float64))
    torch.testing.assert_close(result.graph_module(*given)["logits"], wanted, rtol=0, atol=tolerance[torch.float64])


def test_conv1d_weights_are_folded_the_other_way_round(checked: Any, tolerance: Any) -> None:
    config = peft.LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True)
    model = peft.get_peft_model(tiny("gpt2"), config).eval().double()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.3)
    given = tiny_inputs("gpt2", batch=3, tokens=6)
    graph = capture(model, given).graph_module.eval()

    folded = checked(FoldAdapters(), FreezeRegularization()(graph).graph_module).graph_module

    torch.testing.assert_close(
        folded(*signature_of(graph).arrange(given))["logits"],
        model(**given).logits,
        rtol=0,
        atol=tolerance[torch.float64],
    )
