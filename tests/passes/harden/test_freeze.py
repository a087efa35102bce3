"""FreezeRegularization: the graph of eval mode, with nothing left that train() could switch on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gatefx.passes.graph.canonical import canonical_text
from gatefx.passes.harden.freeze import FreezeRegularization


class Block(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(12, 2, dropout=dropout, batch_first=True)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.attention(x, x, x, need_weights=False)[0]
        return self.dropout(hidden) * attention_mask.unsqueeze(-1)


def test_the_graph_is_that_of_a_module_without_dropout(capture_plain: Any, checked: Any) -> None:
    result = checked(FreezeRegularization(), capture_plain(Block(0.5)))

    assert canonical_text(result.graph_module) == canonical_text(capture_plain(Block(0.0)))
    assert len(result.reports[0].fired) == 2


def test_training_mode_no_longer_matters(capture_plain: Any, checked: Any, inputs: Any) -> None:
    graph = capture_plain(Block(0.5))
    frozen = checked(FreezeRegularization(), graph).graph_module
    given = inputs(batch=4, tokens=6).values()

    wanted = graph.eval()(*given)["logits"]
    assert torch.equal(frozen.train()(*given)["logits"], wanted)
    assert torch.equal(frozen.eval()(*given)["logits"], wanted)
    assert not [module for module in frozen.modules() if isinstance(module, nn.Dropout)]


def test_a_branch_s_own_dropout_goes_too(adapted: Any, checked: Any, inputs: Any) -> None:
    graph = adapted(dropout=0.5)
    frozen = checked(FreezeRegularization(), graph).graph_module

    assert torch.equal(frozen.train()(*inputs().values())["logits"], graph.eval()(*inputs().values())["logits"])


def test_a_graph_without_dropout_is_left_alone(capture_plain: Any, checked: Any) -> None:
    graph = capture_plain(Block(0.0))

    assert checked(FreezeRegularization(), graph).graph_module is graph


def test_the_input_graph_still_drops_out(capture_plain: Any, checked: Any, inputs: Any) -> None:
    graph = capture_plain(Block(0.5)).train()
    checked(FreezeRegularization(), graph)

    given = inputs().values()
    assert not torch.equal(graph(*given)["logits"], graph(*given)["logits"])
