"""The operators' forms in ATen against their references, over random shapes; and that a graph calls them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx

from gatefx.passes.lower import aten_forms as forms
from gatefx.runtime.ops.linear_ops import gated_linear, token_gated_linear
from gatefx.runtime.ops.reference import gated_lora_reference
from gatefx.runtime.ops.reference_tokens import (
    gather_tokens_reference,
    scatter_tokens_reference,
    select_tokens_reference,
)
from gatefx.runtime.ops.reference_updates import token_gated_lora_reference
from gatefx.runtime.ops.schema import gated_lora


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def listed(examples: int, rank: int) -> Tensor:
    """(B, r): for each example some of the directions, none for the last."""
    rows = torch.full((examples, rank), -1)
    for example in range(examples - 1):
        count = int(torch.randint(1, rank + 1, ()))
        rows[example, :count] = torch.randperm(rank)[:count]
    return rows


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("middle", [(), (5,), (3, 2)])
def test_gated_lora(seed: int, middle: tuple[int, ...]) -> None:
    torch.manual_seed(seed)
    d_in, d_out, rank = 7, 9, 4
    x, base, scale = normal(3, *middle, d_in), normal(3, *middle, d_out), torch.tensor(0.7, dtype=torch.float64)
    lora_a, lora_b, indices = normal(rank, d_in), normal(d_out, rank), listed(3, rank)
    got = forms.gated_lora_in_aten(base, x, lora_a, lora_b, indices, scale)
    torch.testing.assert_close(got, gated_lora_reference(base, x, lora_a, lora_b, indices, scale))
    weight, bias = normal(d_out, d_in), normal(d_out)
    fused = forms.gated_linear_in_aten(x, weight, bias, lora_a, lora_b, indices, scale)
    torch.testing.assert_close(fused, gated_linear(x, weight, bias, lora_a, lora_b, indices, scale))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("middle", [(), (5,), (3, 2)])
def test_token_gated_lora(seed: int, middle: tuple[int, ...]) -> None:
    torch.manual_seed(seed)
    d_in, d_out, rank = 7, 9, 4
    x, base, scale = normal(3, *middle, d_in), normal(3, *middle, d_out), torch.tensor(0.7, dtype=torch.float64)
    lora_a, lora_b = normal(rank, d_in), normal(d_out, rank)
    ratios = scale * (x @ lora_a.t() @ lora_b.t()).norm(dim=-1) / base.norm(dim=-1)
    threshold = ratios.median() + 1e-9
    gram = lora_b.t() @ lora_b
    got = forms.token_gated_lora_in_aten(base, x, lora_a, lora_b, gram, threshold, scale)
    assert ((got == base).all(-1) == (ratios < threshold)).all()
    torch.testing.assert_close(got, token_gated_lora_reference(base, x, lora_a, lora_b, threshold, scale))
    weight, bias = normal(d_out, d_in), normal(d_out)
    fused = forms.token_gated_linear_in_aten(x, weight, bias, lora_a, lora_b, gram, threshold, scale)
    torch.testing.assert_close(fused, token_gated_linear(x, weight, bias, lora_a, lora_b, gram, threshold, scale))


@pytest.mark.parametrize(
    ("shape", "dim"),
    [
        ((3, 6), 1),
        ((3, 6, 4), 1),
        ((3, 2, 6, 4), 2),
        ((3, 2, 4, 6), -1),
        ((1, 6, 4), 1),
        ((1, 2, 6), -1),
        ((6, 6, 5), 1),
    ],
)
def test_gather_and_scatter_tokens(shape: tuple[int, ...], dim: int) -> None:
    torch.manual_seed(len(shape))
    indices, valid = select_tokens_reference(torch.rand(3, 6), torch.tensor([4, 1, 2]))
    x = normal(*shape)
    kept = forms.gather_tokens_in_aten(x, indices, dim)
    torch.testing.assert_close(kept, gather_tokens_reference(x, indices, dim % x.dim()), rtol=0, atol=0)
    if dim == 1 and shape[0] == 3:
        back = forms.scatter_tokens_in_aten(kept, indices, valid, 6, -2.5)
        torch.testing.assert_close(back, scatter_tokens_reference(kept, indices, valid, 6, -2.5), rtol=0, atol=0)


def test_a_graph_calls_the_forms_and_the_given_one_stays() -> None:
    graph = fx.Graph()
    names = ("base", "x", "a", "b", "indices", "scale")
    graph.output(graph.call_function(gated_lora._opoverload, tuple(graph.placeholder(name) for name in names)))
    before = fx.GraphModule({}, graph)
    after = forms.in_aten(before)
    assert [node.target for node in after.graph.nodes if node.op == "call_function"] == [forms.gated_lora_in_aten]
    assert [node.target for node in before.graph.nodes if node.op == "call_function"] == [gated_lora._opoverload]
