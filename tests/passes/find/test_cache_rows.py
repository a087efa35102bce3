from __future__ import annotations

import torch

from gatefx.models.tiny import tiny, tiny_decoder, tiny_inputs
from gatefx.passes.find.adapters import Miss
from gatefx.passes.find.cache_rows import find_cache_rows
from gatefx.passes.find.last_token import answered_tokens, emit_last_token, is_last_token
from gatefx.passes.graph.capture import capture


def graph_of(family: str, **options: str) -> torch.fx.GraphModule:
    model = tiny_decoder(family)
    if options:
        model.set_attn_implementation(options["attention"])
    return capture(model, tiny_inputs(family, batch=2, tokens=6)).graph_module


def test_rows_are_those_of_the_heads_that_hold_them_not_of_the_queries() -> None:
    rows = find_cache_rows(graph_of("llama"))
    assert not isinstance(rows, Miss)
    assert [row.key.meta["val"].shape[1] for row in rows] == [2, 2], "two heads serve four queries"
    assert [row.attention.keys.meta["val"].shape[1] for row in rows] == [4, 4]
    assert {row.visible for row in rows} == {rows[0].visible}


def test_models_with_a_head_for_every_query_have_nothing_to_undo() -> None:
    rows = find_cache_rows(graph_of("gpt2"))
    assert not isinstance(rows, Miss)
    assert all(row.key is row.attention.keys and row.value is row.attention.values for row in rows)


def test_attention_in_several_operators_is_a_miss_that_says_so() -> None:
    found = find_cache_rows(graph_of("llama", attention="eager"))
    assert isinstance(found, Miss)
    assert "several operators" in found.reason


def test_the_place_of_the_last_token_is_known_again() -> None:
    graph_module = graph_of("llama")
    mask = next(node for node in graph_module.graph.nodes if node.target == "attention_mask")
    with graph_module.graph.inserting_after(mask):
        last = emit_last_token(graph_module.graph, mask, mask, origin="test")
    assert is_last_token(last)
    assert not is_last_token(mask)
    assert last.meta["val"].shape[1] == 1


def test_a_choice_of_prompt_tokens_is_judged_by_the_last_ones_answers() -> None:
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 0, 0]])
    assert answered_tokens(graph_of("llama"), mask).tolist() == [[0, 0, 0, 1], [0, 1, 0, 0]]
    encoder = capture(tiny("bert"), tiny_inputs("bert", batch=2, tokens=4)).graph_module
    assert answered_tokens(encoder, mask) is mask
    assert answered_tokens(graph_of("llama"), None) is None
