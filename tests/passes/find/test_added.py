"""find_added_sites: adapters of other kinds by what trains, and what only looks like one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, HiraConfig, LoraConfig, get_peft_model
from torch import Tensor, nn

from gatefx.models.tiny import tiny, tiny_inputs
from gatefx.passes.find.added import find_added_sites
from gatefx.passes.graph.capture import capture


class Beside(nn.Module):
    """A frozen layer with a bottleneck beside it, and an option of what else the branch does."""

    def __init__(self, kind: str = "relu") -> None:
        super().__init__()
        self.kind = kind
        self.base = nn.Linear(12, 10).requires_grad_(kind == "trained")
        self.down, self.up = nn.Linear(12, 3), nn.Linear(3, 10)

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = torch.relu(self.down(x))
        if self.kind == "mean":
            hidden = hidden + hidden.mean(1, keepdim=True)
        update = 0.5 * self.up(hidden)
        if self.kind == "other":
            update = update * attention_mask.to(x.dtype).unsqueeze(-1)
        return update + self.base(x) if self.kind == "reversed" else self.base(x) + update


def graph_of(kind: str, inputs: Any) -> Any:
    return capture(Beside(kind), inputs()).graph_module


@pytest.mark.parametrize("kind", ["relu", "reversed"])
def test_a_bottleneck_beside_a_frozen_layer(inputs: Any, kind: str) -> None:
    (site,) = find_added_sites(graph_of(kind, inputs))

    assert (site.path, site.rank, site.d_in, site.d_out) == ("base", 3, 12, 10)
    assert set(site.parameters) == {"down.weight", "down.bias", "up.weight", "up.bias"}
    assert site.update is site.scaled
    assert {site.base, site.scaled} == set(site.add.all_input_nodes)


@pytest.mark.parametrize("kind", ["mean", "other", "trained"])
def test_what_mixes_tokens_reads_more_or_trains_whole_is_none(inputs: Any, kind: str) -> None:
    assert find_added_sites(graph_of(kind, inputs)) == ()


@pytest.mark.parametrize(
    ("config", "tensors"),
    [
        (LoraConfig(r=4, target_modules=["query"], use_dora=True), {"lora_A", "lora_B", "lora_magnitude_vector"}),
        (AdaLoraConfig(init_r=6, target_r=4, target_modules=["query"], total_step=9), {"lora_A", "lora_B", "lora_E"}),
    ],
)
def test_peft_s_other_low_rank_kinds(config: Any, tensors: set[str]) -> None:
    model = get_peft_model(tiny("bert"), config)
    sites = find_added_sites(capture(model, tiny_inputs("bert", batch=3, tokens=9)).graph_module)

    assert [site.path for site in sites] == [f"bert.encoder.layer.{index}.attention.self.query" for index in (0, 1)]
    found = {part for name in sites[0].parameters for part in name.split(".") if part.startswith("lora_")}
    assert found == tensors
    assert sites[0].rank in (4, 6)


@pytest.mark.parametrize("kind", [LoraConfig, HiraConfig])
def test_known_kinds_are_left_to_their_own_finders(kind: Any) -> None:
    model = get_peft_model(tiny("bert"), kind(r=4, target_modules=["query"]))
    assert find_added_sites(capture(model, tiny_inputs("bert", batch=3, tokens=9)).graph_module) == ()


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5", "vit"])
def test_a_frozen_model_without_adapters_has_none(captured_family: Any, family: str) -> None:
    assert find_added_sites(captured_family(family)[1].graph_module) == ()
