"""HiRA sites: read from gatefx's own spelling and from PEFT's, and from nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import HiraConfig, get_peft_model
from torch import Tensor, nn

from gatefx.models.tiny import tiny, tiny_inputs
from gatefx.passes.find.adapters import find_sites
from gatefx.passes.find.hira import find_hira_sites
from gatefx.passes.graph.capture import capture


def test_the_finder_reads_every_part(modulated: Any) -> None:
    graph = modulated(gated=False, dropout=0.2)
    first, second = find_hira_sites(graph)

    assert (first.name, first.rank, first.d_in, first.d_out, first.factors) == ("first", 4, 12, 10, ())
    assert (second.path, second.d_in, second.d_out, second.transposed) == ("second", 10, 8, False)
    assert first.branch_input is not first.x
    assert first.update is first.scaled is first.up
    assert first.add.args == (first.base, first.up)
    assert find_sites(graph) == ((), ())


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_peft_s_spelling_is_a_site_too(family: str, tolerance: Any) -> None:
    model = tiny(family)
    names = ["query", "value"] if family == "bert" else ["c_attn"]
    tuned = get_peft_model(
        model, HiraConfig(r=4, target_modules=names, init_weights=False, fan_in_fan_out=family == "gpt2")
    )
    batch = tiny_inputs(model, batch=3, tokens=9)
    captured = capture(tuned.eval(), batch)
    sites = find_hira_sites(captured.graph_module)

    assert len(sites) == 2 * len(names)
    assert {site.path.rpartition(".")[2] for site in sites} == set(names)
    assert {site.rank for site in sites} == {4}
    assert {str(site.hira_a.target).rpartition(".hira_")[2] for site in sites} == {"A.default"}


class Lookalike(nn.Module):
    """Products of a weight that are no HiRA: of another layer's, with a bias, added to nothing."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.layer, self.other = nn.Linear(12, 10), nn.Linear(12, 10)
        self.a, self.b = nn.Parameter(torch.randn(3, 12)), nn.Parameter(torch.randn(10, 3))
        self.bias = nn.Parameter(torch.randn(10))

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        weight = self.other.weight if self.kind == "another layer's weight" else self.layer.weight
        bias = self.bias if self.kind == "a bias" else None
        state = torch.tanh(x) if self.kind == "another state" else x
        update = nn.functional.linear(state, weight * (self.b @ self.a), bias)
        base = self.layer(x) * attention_mask.unsqueeze(-1)
        return base + update if self.kind == "a masked base" else self.layer(x) + update


@pytest.mark.parametrize(
    ("kind", "count"),
    [("hira", 1), ("another layer's weight", 0), ("a bias", 0), ("another state", 0), ("a masked base", 0)],
)
def test_only_an_update_of_the_layer_s_own_weight_counts(inputs: Any, kind: str, count: int) -> None:
    graph = capture(Lookalike(kind), inputs()).graph_module

    assert len(find_hira_sites(graph)) == count
