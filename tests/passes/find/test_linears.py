"""Linear layers, spelled as linear or as Conv1D's addmm, and PEFT's target rules over their paths."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from gatefx.errors import SiteError
from gatefx.models.tiny import FAMILIES
from gatefx.passes.find.layer_names import layer_of
from gatefx.passes.find.linears import find_linears, is_output, select_targets

from ...sampling import rest_slow

ATTENTION = {f"bert.encoder.layer.{i}.attention.self.{n}" for i in (0, 1) for n in ("query", "key", "value")}


FIRST = ("bert", "modernbert", "t5", "gpt2", "llama", "vit")
CASES = [*FIRST, *sorted(set(FAMILIES) - {"deberta-v2", *FIRST})]


@pytest.fixture
def linears(captured_family: Any) -> Any:
    return find_linears(captured_family("bert")[1].graph_module)


@pytest.mark.parametrize("family", rest_slow(CASES, len(FIRST)))
def test_every_linear_of_a_family_is_found_once(family: str, captured_family: Any) -> None:
    model, captured = captured_family(family)
    found = [linear.path for linear in find_linears(captured.graph_module)]

    kinds = (nn.Linear, *((type(model.transformer.h[0].mlp.c_fc),) if family == "gpt2" else ()))
    wanted = {name for name, module in model.named_modules() if isinstance(module, kinds)}
    calls = 2 if family == "albert" else 1  # albert's layers share their weights
    assert set(found) == wanted
    assert max(map(found.count, found)) == calls


def test_conv1d_is_a_linear_with_a_transposed_weight(captured_family: Any) -> None:
    found = {linear.path: linear for linear in find_linears(captured_family("gpt2")[1].graph_module)}

    attention = found["transformer.h.0.attn.c_attn"]
    assert attention.transposed
    assert (attention.d_in, attention.d_out) == (32, 96)
    assert not found["score"].transposed


def test_sizes_are_the_layer_s(linears: Any) -> None:
    sizes = {linear.path: (linear.d_in, linear.d_out) for linear in linears}

    assert sizes["bert.encoder.layer.0.intermediate.dense"] == (32, 64)
    assert sizes["classifier"] == (32, 2)


def paths(linears: Any, targets: Any) -> set[str]:
    return {linear.path for linear in select_targets(linears, targets)}


def test_all_linear_leaves_heads_alone(linears: Any) -> None:
    chosen = paths(linears, "all-linear")

    assert chosen == {linear.path for linear in linears} - {"classifier"}
    assert chosen > ATTENTION


@pytest.mark.parametrize(
    ("targets", "wanted"),
    [
        (("query", "key", "value"), ATTENTION),
        (("self.query", "key", "value"), ATTENTION),
        (r".*\.(query|key|value)", ATTENTION),
        (("bert.encoder.layer.1.attention.self.query",), {"bert.encoder.layer.1.attention.self.query"}),
        (r"bert\.encoder\.layer\.1\..*query", {"bert.encoder.layer.1.attention.self.query"}),
        ("query", {path for path in ATTENTION if path.endswith("query")}),
        (("classifier",), {"classifier"}),
    ],
)
def test_targets_follow_peft_s_rules(linears: Any, targets: Any, wanted: set[str]) -> None:
    assert paths(linears, targets) == wanted


@pytest.mark.parametrize("targets", [("uery",), "uery", ("nonsense",), ()])
def test_targets_that_match_nothing_list_what_there_is(linears: Any, targets: Any) -> None:
    with pytest.raises(SiteError, match="No linear layer") as caught:
        select_targets(linears, targets)

    assert "query" in str(caught.value)


def test_a_broken_expression_is_named(linears: Any) -> None:
    with pytest.raises(SiteError, match="no regular expression"):
        select_targets(linears, "query(")


def test_layers_and_outputs_are_read_from_paths() -> None:
    assert layer_of("bert.encoder.layer.3.attention.self.query") == "bert.encoder.layer.3"
    assert layer_of("classifier") == ""
    assert layer_of("h.0.mlp.experts.2.up") == "h.0"
    assert [is_output(path) for path in ("classifier.dense", "lm_head", "model.score", "my_classifier")] == [
        True,
        True,
        True,
        False,
    ]


def test_a_linear_without_bias_and_over_two_axes_is_found(capture_plain: Any) -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.Linear(12, 6, bias=False)

        def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.proj(x.mean(1)) * attention_mask.sum(1, keepdim=True)

    (linear,) = find_linears(capture_plain(Bare()))
    assert (linear.path, linear.d_in, linear.d_out) == ("proj", 12, 6)


def test_exclusions_and_layers_narrow_the_targets(linears: Any) -> None:
    chosen = select_targets(linears, "all-linear", exclude=("query", "pooler.dense"), layers=(1,))
    assert {linear.path for linear in chosen} == {
        f"bert.encoder.layer.1.{part}"
        for part in (
            "attention.self.key",
            "attention.self.value",
            "attention.output.dense",
            "intermediate.dense",
            "output.dense",
        )
    }
    with pytest.raises(SiteError, match=r"exclude_modules='\.\*'"):
        select_targets(linears, ("query",), exclude=".*")
    with pytest.raises(SiteError, match=r"layers_to_transform=\(7,\)"):
        select_targets(linears, ("query",), layers=(7,))
