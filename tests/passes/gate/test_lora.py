"""AttachLora: fresh branches that change nothing yet, as if the module had been written with them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gatefx.errors import SiteError
from gatefx.passes.find.adapters import find_sites
from gatefx.passes.gate.lora import AttachLora
from gatefx.passes.graph.canonical import canonical_text


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(12, 10)

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        return torch.tanh(self.proj(x)) * attention_mask.unsqueeze(-1)


class _Factor(nn.Module):
    """Holds PEFT's name for one half of the adapter."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.default = nn.Linear(columns, rows, bias=False)


class _Adapted(nn.Linear):
    def __init__(self, dropout: float) -> None:
        super().__init__(12, 10)
        self.lora_A, self.lora_B = _Factor(4, 12), _Factor(10, 4)
        self.lora_dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        base = super().forward(x)
        return base + self.lora_B.default(self.lora_A.default(self.lora_dropout(x))) * 2.0


class Expected(Layer):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.proj = _Adapted(dropout)


def names_aside(text: str) -> str:
    return text.replace("proj.lora_dropout.default:", "dropout_0:")


@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_the_graph_is_that_of_a_module_written_with_lora(capture_plain: Any, checked: Any, dropout: float) -> None:
    result = checked(AttachLora(4, 8.0, dropout, "all-linear"), capture_plain(Layer()))

    expected = canonical_text(capture_plain(Expected(dropout)))
    if dropout == 0.0:  # a Dropout(0) module is kept as a module by capture
        expected = canonical_text(capture_plain(_without_dropout()))
    assert names_aside(canonical_text(result.graph_module)) == expected
    assert result.reports[0].fired == ("proj",)
    assert result.reports[0].op_changes["linear.default"] == 2


def _without_dropout() -> nn.Module:
    module = Expected(0.0)
    module.proj.lora_dropout = nn.Identity()
    return module


def test_it_changes_nothing_yet(capture_plain: Any, checked: Any, inputs: Any) -> None:
    graph = capture_plain()
    attached = checked(AttachLora(4, 8.0, 0.1, "all-linear"), graph).graph_module

    given = inputs(batch=4, tokens=7).values()
    assert torch.equal(attached(*given)["logits"], graph(*given)["logits"])
    assert all(not value.any() for name, value in attached.named_parameters() if ".lora_B." in name)


def test_factors_take_the_layer_s_dtype_and_train(capture_plain: Any, checked: Any) -> None:
    attached = checked(AttachLora(4, 8.0, 0.0, "all-linear"), capture_plain(dtype=torch.float64)).graph_module
    factors = {name: value for name, value in attached.named_parameters() if ".lora_" in name}

    assert set(factors) == {f"{n}.lora_{h}.default.weight" for n in ("first", "second") for h in "AB"}
    assert all(value.dtype == torch.float64 and value.requires_grad for value in factors.values())


def test_overrides_set_rank_and_scale_of_their_layer(capture_plain: Any, checked: Any) -> None:
    attach = AttachLora(4, 8.0, 0.0, ("first", "second"), (("second", 3, 1.5),))
    sites = find_sites(checked(attach, capture_plain()).graph_module)[0]

    assert [(site.name, site.rank, site.scale) for site in sites] == [("first", 4, 2.0), ("second", 3, 0.5)]


def test_layers_that_cannot_carry_one_are_declined_with_reasons(capture_plain: Any, checked: Any) -> None:
    report = checked(AttachLora(8, 16.0, 0.0, ("first", "second", "classifier")), capture_plain()).reports[0]

    assert report.fired == ("first",)
    assert {d.where: d.reason for d in report.declined} == {
        "second": "rank 8 is no smaller than the 8x10 layer",
        "classifier": "rank 8 is no smaller than the 3x8 layer",
    }


def test_where_nothing_fits_the_graph_is_the_same_object(capture_plain: Any, checked: Any) -> None:
    graph = capture_plain()

    result = checked(AttachLora(64, 16.0, 0.0, "all-linear"), graph)

    assert result.graph_module is graph
    assert len(result.reports[0].declined) == 2


def test_layers_with_an_adapter_are_left_alone(adapted: Any, checked: Any) -> None:
    graph = adapted()
    result = checked(AttachLora(2, 4.0, 0.0, "all-linear"), graph)

    assert result.graph_module is graph
    assert {d.reason for d in result.reports[0].declined} == {"it has an adapter already"}


def test_a_shared_layer_gets_one_branch_per_call_with_one_pair_of_factors_or_none(
    capture_plain: Any, checked: Any
) -> None:
    """A layer that runs twice: a second branch would need the same factors; whatever is done is legal and exact."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.Linear(12, 12)

        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            return self.proj(torch.tanh(self.proj(x))) * attention_mask.unsqueeze(-1)

    result = checked(AttachLora(4, 8.0, 0.0, "all-linear"), capture_plain(Twice()))

    assert result.reports[0].fired == ("proj",)
    assert [d.where for d in result.reports[0].declined] == ["proj"]


def test_a_layer_that_another_feeds_directly_reads_what_the_other_then_answers(
    capture_plain: Any, checked: Any, inputs: Any
) -> None:
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(12, 10), nn.Linear(10, 8)

        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            return self.second(self.first(x)) * attention_mask.unsqueeze(-1)

    graph = checked(AttachLora(4, 8.0, 0.0, "all-linear"), capture_plain(Chain())).graph_module
    sites, misses = find_sites(graph)
    assert [site.name for site in sites] == ["first", "second"]
    assert not misses

    for name, parameter in graph.named_parameters():
        if ".lora_B." in name:
            nn.init.normal_(parameter)
    values = dict(graph.named_parameters())

    def layer(name: str, x: Tensor) -> Tensor:
        a, b = (values[f"{name}.lora_{half}.default.weight"] for half in "AB")
        return x @ values[f"{name}.weight"].T + values[f"{name}.bias"] + 2.0 * (x @ a.T @ b.T)

    given = inputs()
    wanted = layer("second", layer("first", given["x"])) * given["attention_mask"].unsqueeze(-1)
    torch.testing.assert_close(graph(*given.values())["logits"], wanted, rtol=0, atol=1e-4)


def test_targets_that_match_nothing_are_an_error(capture_plain: Any) -> None:
    with pytest.raises(SiteError, match="nonsense"):
        AttachLora(4, 8.0, 0.0, ("nonsense",))(capture_plain())


def test_gradients_reach_the_factors_alone(adapted: Any, inputs: Any) -> None:
    graph = adapted()
    graph(*inputs().values())["logits"].square().sum().backward()

    assert all(value.grad is not None for name, value in graph.named_parameters() if ".lora_" in name)
