"""Adapters as buffers of a graph: the same numbers over the same weights, the original untouched."""

from __future__ import annotations

import torch
from peft import LoraConfig, get_peft_model

from gatefx.models.tiny import tiny, tiny_inputs
from gatefx.passes.find.adapters import find_sites
from gatefx.passes.graph.capture import capture
from gatefx.passes.graph.edit import get_tensor
from gatefx.passes.lower.open_adapters import open_adapters, open_site


def test_open_adapters_compute_the_same_and_can_be_replaced() -> None:
    config = LoraConfig(r=3, lora_alpha=5, target_modules=["query", "output.dense"], init_lora_weights=False)
    graph = capture(get_peft_model(tiny("bert"), config).eval(), tiny_inputs("bert", 2, 7)).graph_module.eval()
    before = str(graph.graph)
    batch = tuple(tiny_inputs("bert", 3, 9).values())
    sites = [open_site(site) for site in find_sites(graph)[0]]
    opened = open_adapters(graph)

    with torch.no_grad():
        torch.testing.assert_close(opened(*batch)["logits"], graph(*batch)["logits"], rtol=0, atol=1e-5)
        assert str(graph.graph) == before
        assert not find_sites(opened)[0]
        names = {site.a for site in sites} | {site.b for site in sites}
        assert names <= {name for name, _ in opened.named_buffers()}
        assert not names & {name for name, _ in graph.named_buffers()}
        for site in sites:
            assert get_tensor(opened, site.a).shape == (site.d_in, 3)
            assert get_tensor(opened, site.b).shape == (3, site.d_out)
            get_tensor(opened, site.b).zero_()
        base = tiny("bert")(**tiny_inputs("bert", 3, 9)).logits
        torch.testing.assert_close(opened(*batch)["logits"], base, rtol=0, atol=1e-5)
