"""find_attention: every spelling of attention, its mask and what holds it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gatefx.passes.find.attention import find_attention
from gatefx.passes.graph.capture import capture
from gatefx.passes.graph.edit import tensor_value
from gatefx.passes.harden.freeze import FreezeRegularization

aten = torch.ops.aten


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "electra"])
def test_one_operator_in_training_and_frozen_form(captured_family: Any, family: str) -> None:
    graph = captured_family(family)[1].graph_module
    frozen = FreezeRegularization()(graph).graph_module

    for found in (find_attention(graph), find_attention(frozen)):
        assert len(found) == 2
        assert all(item.is_fused and item.holder is item.node and not item.causal for item in found)
        assert found[0].mask is found[1].mask
        assert found[0].mask is not None
        assert tensor_value(found[0].mask).dtype is torch.bool
        assert all(item.key_axis == 2 for item in found)
    assert {item.node.op for item in find_attention(graph)} == {"call_module"}
    assert {item.node.op for item in find_attention(frozen)} == {"call_function"}


def test_an_additive_mask_shared_by_layers(captured_family: Any) -> None:
    first, second = find_attention(captured_family("mpnet")[1].graph_module)

    assert first.mask is second.mask is not None
    assert first.holder.target is aten.add.Tensor
    assert first.key_axis == 3


def test_filled_scores_have_no_mask_to_share(captured_family: Any) -> None:
    found = find_attention(captured_family("deberta-v2")[1].graph_module)

    assert [item.holder.target for item in found] == [aten.masked_fill.Scalar] * 2
    assert all(item.mask is None and item.scores is item.holder.args[0] for item in found)


def test_the_masks_of_an_encoder_and_its_decoder(captured_family: Any) -> None:
    found = find_attention(captured_family("bart")[1].graph_module)

    assert len(found) == 6  # two of the encoder; two of the decoder's own, two across
    assert [bool(item.causal) for item in found] == [False, False, True, False, True, False]


class Causal(nn.Module):
    """Attention that forbids the future in one of several ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.project = nn.Linear(12, 12)
        self.register_buffer("triangle", torch.ones(16, 16, dtype=torch.bool).tril())

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.project(x)[:, None]
        if self.how == "flag":
            return nn.functional.scaled_dot_product_attention(hidden, hidden, hidden, is_causal=True)
        length = x.shape[1]
        triangle = self.triangle[:length, :length]
        if self.how == "tril":
            triangle = torch.ones(length, length, dtype=torch.bool).tril()
        scores = torch.matmul(hidden, hidden.transpose(-1, -2)).masked_fill(~triangle, -1e9)
        return (scores + torch.zeros(length)).softmax(-1) @ hidden  # the triangle is not the last thing applied


@pytest.mark.parametrize(
    ("how", "words"),
    [("flag", "is_causal=True"), ("buffer", "reads the triangle triangle"), ("tril", "compares positions in tril")],
)
def test_every_way_to_forbid_the_future_is_seen(how: str, words: str) -> None:
    graph = capture(Causal(how).eval(), {"x": torch.randn(3, 5, 12)}).graph_module

    (found,) = find_attention(graph)

    assert words in found.causal
