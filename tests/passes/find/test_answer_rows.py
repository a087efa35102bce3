from __future__ import annotations

from gatefx.models.tiny import tiny, tiny_inputs
from gatefx.passes.find.adapters import Miss
from gatefx.passes.find.answer_rows import AnswerRows, computed_from, find_answer_rows, has_encoder
from gatefx.passes.graph.capture import capture


def test_own_and_cross_attentions_of_a_decoder_behind_an_encoder(captured_family) -> None:
    graph_module = captured_family("t5")[1].graph_module
    assert has_encoder(graph_module)
    rows = find_answer_rows(graph_module)
    assert isinstance(rows, AnswerRows)
    assert (len(rows.own), len(rows.cross)) == (2, 2)
    encoded = computed_from(graph_module.graph, rows.inputs["input_ids"])
    assert all(row.key in rows.answered and row.value in rows.answered for row in rows.own)
    assert all(row.key in encoded - rows.answered and row.value not in rows.answered for row in rows.cross)


def test_a_model_without_an_encoder_is_a_miss(captured_family) -> None:
    graph_module = captured_family("bert")[1].graph_module
    assert not has_encoder(graph_module)
    assert isinstance(find_answer_rows(graph_module), Miss)


def test_a_mask_over_the_answer_as_an_input_is_a_miss_that_names_it() -> None:
    example = tiny_inputs("t5", 2, 6)
    example["decoder_attention_mask"] = example["decoder_input_ids"].new_ones(example["decoder_input_ids"].shape)
    found = find_answer_rows(capture(tiny("t5"), example).graph_module)
    assert isinstance(found, Miss)
    assert "decoder_attention_mask" in found.reason
