from __future__ import annotations

import pytest
import torch

from gatefx.errors import PassError
from gatefx.models.configs.ccm import CCM
from gatefx.models.tiny import tiny, tiny_inputs
from gatefx.passes.decode.encoder import drop_input
from gatefx.passes.graph.signature import signature_of


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_the_models_own_keys_and_values_of_the_encoder(answering, family: str) -> None:
    made = answering(family)
    source = tiny_inputs(family, 4, 11, seed=3)
    with torch.no_grad():
        found = made.encode(source["input_ids"], source["attention_mask"])
        wanted = made.model(**source, use_cache=True).past_key_values.cross_attention_cache
    for layer, states in enumerate(wanted.layers):
        torch.testing.assert_close(found[f"present_cross.{layer}.key"], states.keys, atol=1e-5, rtol=0)
        torch.testing.assert_close(found[f"present_cross.{layer}.value"], states.values, atol=1e-5, rtol=0)
    assert len(found) == 4, "without gates the mask is the input itself"


def test_the_encoder_takes_the_source_alone_and_holds_no_decoder(answering) -> None:
    graph = answering("t5").encode
    assert signature_of(graph).input_names == ("input_ids", "attention_mask")
    read = {str(node.target) for node in graph.graph.find_nodes(op="get_attr")}
    assert not {name for name in read if "decoder" in name and not name.endswith(("k.weight", "v.weight"))}


def test_an_input_whose_numbers_are_read_cannot_go(answering) -> None:
    graph = answering("bart").encode.graph
    with pytest.raises(PassError, match="reads input_ids"):
        drop_input(graph, next(iter(graph.find_nodes(op="placeholder"))), {}, origin="test")


def test_ranks_that_the_answer_chooses_are_refused_with_a_reason() -> None:
    import gatefx

    example = tiny_inputs("bart", 2, 6)
    config = CCM(rank=4, target_modules=["decoder.layers.0.self_attn.q_proj"])
    gated = gatefx.prepare(tiny("bart"), config, 4, example_inputs=example)
    fast = gatefx.optimize(gated, budget=2, data=[example], distill_steps=1, progress=False)
    assert any("chooses ranks by the answer's tokens" in note for note in fast.report.notes)
