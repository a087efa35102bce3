from __future__ import annotations

from typing import Any

import pytest
import torch

from gatefx.errors import InputError
from gatefx.passes.decode.fixed_rows import FixRows, in_place
from gatefx.passes.graph.signature import signature_of
from gatefx.runtime.cache_names import past_of

from ...sampling import rest_slow

_ROWS = 30


def static_run(pair: Any, graph: Any, ids: torch.Tensor, mask: torch.Tensor, steps: int) -> torch.Tensor:
    """Greedy tokens (B, steps) by a decode over buffers of 30 rows."""
    answers = pair.start(ids, mask)
    width, place = ids.shape[1], mask.sum(1, keepdim=True) - 1
    buffers = {}
    for name, value in answers.items():
        if name != "logits":
            axis = value.dim() // 2
            shape = [*value.shape]
            shape[axis] = _ROWS
            buffers[name] = torch.zeros(shape, dtype=value.dtype)
            buffers[name].narrow(axis, 0, width).copy_(value)
    tokens, logits = [], answers["logits"][:, -1]
    for step in range(steps):
        tokens.append(logits.argmax(-1, keepdim=True))
        given = {"input_ids": tokens[-1], "attention_mask": torch.ones_like(tokens[-1])}
        given |= {"position_ids": place + 1 + step, "cache_position.0": torch.tensor([width + step])}
        given |= {past_of(name): value for name, value in buffers.items()}
        with torch.no_grad():
            found = graph(*(given[name] for name in signature_of(graph).input_names))
        logits = found.pop("logits")[:, -1]
        assert {name: value.shape for name, value in found.items()} == {n: v.shape for n, v in buffers.items()}
        buffers = found
    return torch.cat(tokens, 1)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", rest_slow(["llama", "gpt2", "mixed", "mistral", "bloom"], 3))
def test_rows_at_places_are_as_good_as_rows_behind(pairs: Any, ragged_prompts: Any, family: str, side: str) -> None:
    _, pair = pairs(family)
    ids, mask = ragged_prompts(3, 18, side)
    wanted, _ = pair.greedy(ids, mask, 6)
    result = FixRows()(pair.decode, verify=True)
    assert torch.equal(static_run(pair, result.graph_module, ids, mask, 6), wanted)
    assert torch.equal(static_run(pair, in_place(result.graph_module), ids, mask, 6), wanted)
    assert result.reports[0].op_changes == {"cat.default": -6, "index_copy.default": 6}


def test_sizes_of_the_cache_stay_and_places_are_inputs(pairs: Any) -> None:
    graph = FixRows()(pairs("llama")[1].decode, verify=True).graph_module
    shown = {spec.name: [str(axis) for axis in spec.axes] for spec in signature_of(graph).inputs}
    assert shown["cache_position.0"] == [shown["input_ids"][1]]
    nodes = dict(zip(signature_of(graph).input_names, graph.graph.find_nodes(op="placeholder"), strict=True))
    answers = graph.graph.output_node().args[0]
    for layer in range(2):
        past, present = nodes[f"past_key_values.{layer}.key"], answers[f"present.{layer}.key"]
        assert present.meta["val"].shape == past.meta["val"].shape


def test_in_place_buffers_are_written_and_answered(pairs: Any, ragged_prompts: Any) -> None:
    graph = in_place(FixRows()(pairs("llama")[1].decode).graph_module)
    given = {}
    for spec in signature_of(graph).inputs:
        sizes = [axis.size or {"batch": 2, "past_0": 9}.get(axis.symbol, 1) for axis in spec.axes]
        given[spec.name] = torch.zeros(sizes, dtype=spec.dtype)
    given["input_ids"] += 7  # the padding token has no embedding
    given["attention_mask"] += 1
    given["cache_position.0"] += 4
    answers = graph(*given.values())
    for name in ("key", "value"):
        assert answers[f"present.0.{name}"] is given[f"past_key_values.0.{name}"]
    assert given["past_mask.0"].tolist() == [[0, 0, 0, 0, 1, 0, 0, 0, 0]] * 2
    assert given["past_key_values.1.key"].any(-1).any(1).tolist() == [[place == 4 for place in range(9)]] * 2


def test_an_encoder_decoder_is_refused(answering: Any) -> None:
    with pytest.raises(InputError, match="no static cache"):
        FixRows()(answering("t5").decode)
