from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gatefx.errors import PassError
from gatefx.passes.decode.cache_inputs import CacheInputs
from gatefx.passes.decode.places import count_on, grow
from gatefx.passes.graph.capture import capture
from gatefx.passes.graph.edit import emit, shape_of

aten = torch.ops.aten


class Places(nn.Module):
    """Places of the tokens, and how far each query is behind each key."""

    def __init__(self, mixed: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(64, 4)
        self.mixed = mixed

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        keys, queries = torch.arange(ids.shape[1]), torch.arange(ids.shape[1])
        apart = queries[:, None] - (keys.cumsum(0) if self.mixed else keys)[None]
        return {"behind": apart.expand(ids.shape[0], -1, -1), "state": self.embed(queries + 1)[None] + self.embed(ids)}


def _counted(module: nn.Module):
    graph_module = capture(module, {"ids": torch.zeros(2, 6).long()}).graph_module
    tokens = next(iter(graph_module.graph.find_nodes(op="placeholder")))
    past = CacheInputs(graph_module, tokens, 1, "test").add("past", tokens, 1)
    with graph_module.graph.inserting_after(past):
        size = emit(graph_module.graph, aten.sym_size.int, (past, 1), origin="test", like=past)
    return graph_module, count_on(graph_module, tokens, size, origin="test")


def test_keys_count_from_the_start_and_queries_from_the_cache() -> None:
    module = Places()
    graph_module, keys = _counted(module)
    assert len(keys) == 1
    grow(graph_module, keys)
    graph_module.recompile()
    ids = torch.tensor([[3, 4], [5, 6]])
    found = graph_module(ids, torch.zeros(2, 5).long())
    assert found["behind"].tolist() == [[[5, 4, 3, 2, 1, 0, -1], [6, 5, 4, 3, 2, 1, 0]]] * 2
    torch.testing.assert_close(found["state"], module.embed(torch.tensor([6, 7])) + module.embed(ids))
    behind = graph_module.graph.output_node().args[0]["behind"]
    assert len({str(size) for size in shape_of(behind)}) == 3, "queries and keys have sizes of their own"


def test_an_operator_that_mixes_places_is_refused() -> None:
    with pytest.raises(PassError, match="mixes places of the answer"):
        _counted(Places(mixed=True))
