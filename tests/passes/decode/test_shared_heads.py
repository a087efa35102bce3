from __future__ import annotations

from typing import Any

import pytest
import torch

from gatefx.passes.decode.shared_heads import ShareHeads
from gatefx.passes.find.adapters import Miss
from gatefx.passes.find.cache_rows import find_cache_rows
from gatefx.passes.graph.legality import check_legality
from gatefx.passes.pipeline import Pipeline


def shared(graph: torch.fx.GraphModule) -> torch.fx.GraphModule:
    return Pipeline((ShareHeads(),), assumes=("ReadCache",))(graph, verify=True).graph_module


@pytest.mark.parametrize("family", ["llama", "mistral", "mixed"])
def test_heads_are_read_once_and_the_answers_are_the_same(pairs: Any, ragged_prompts: Any, family: str) -> None:
    pair = pairs(family)[1]
    graph = shared(pair.decode)
    check_legality(graph)
    rows = find_cache_rows(graph)
    assert not isinstance(rows, Miss)
    assert all(row.attention.keys.meta["val"].shape[1] == 2 for row in rows), "two heads, and no copy of them"
    ids, mask = ragged_prompts(3, 18)
    cache = pair.start(ids, mask)
    for count in (1, 3):
        new = torch.randint(5, 99, (3, count)), torch.ones(3, count).long()
        positions = mask.sum(1, keepdim=True) + torch.arange(count)
        wanted = pair.go_on(*new, positions, cache)
        found = type(pair)(pair.prefill, graph).go_on(*new, positions, cache)
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, atol=1e-5, rtol=0)


def test_a_head_for_every_query_stays_as_it_is(pairs: Any) -> None:
    graph = pairs("gpt2")[1].decode
    assert shared(graph) is graph
    again = shared(pairs("llama")[1].decode)
    assert shared(again) is again
