"""Numbers that a model makes tensors of while it is traced, as DeBERTa does of its attention span and its scale."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from gatefx.errors import CaptureError
from gatefx.passes.graph.capture import capture
from gatefx.passes.graph.functional import out_of_place

aten = torch.ops.aten
REACH = 6


class Spanned(nn.Module):
    """Reads as many rows of its table as there are tokens, through a tensor of that number (as DeBERTa v1 does)."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(2 * REACH, 3))

    def forward(self, states: Tensor) -> Tensor:
        span = torch.tensor(min(states.shape[1], REACH))
        rows = self.table[REACH - span : REACH + span]
        scale = torch.sqrt(torch.tensor(states.shape[-1], dtype=torch.float))
        return states.mean(1) / scale + rows.mean(0)


def states(batch: int, tokens: int) -> Tensor:
    return torch.randn(batch, tokens, 3, generator=torch.Generator().manual_seed(tokens))


def test_a_number_without_bounds_is_captured_and_binds_no_axis() -> None:
    model = Spanned().eval()
    exported = torch.export.export(
        model, (states(3, 5),), dynamic_shapes=({0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO},), strict=False
    )
    assert any(not extent.lower.is_Integer for extent in exported.range_constraints.values()), "nothing is tested"

    captured = capture(model, {"states": states(3, 5)})

    (spec,) = captured.graph_module.meta["signature"].inputs
    assert [(axis.size, axis.least) for axis in spec.axes[:2]] == [(None, 2), (None, 2)]
    for batch, tokens in ((1, 2), (2, 4), (4, 9)):
        given = states(batch, tokens)
        (answer,) = captured.graph_module(given).values()
        assert torch.equal(answer, model(given))


def written(operator: Any) -> fx.Node:
    """A call of an in-place operator on a tensor of which a view is read too."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    y = graph.call_function(aten.add.Tensor, (x, 1))
    view = graph.call_function(aten.view.default, (y, [-1]))
    node = graph.call_function(operator, (y,))
    graph.output((view, node))
    return node


def test_detaching_in_place_is_detaching_whoever_reads_the_tensor() -> None:
    assert out_of_place(written(aten.detach_.default)) is aten.detach.default


@pytest.mark.parametrize("operator", [aten.relu_.default, aten.neg_.default])
def test_writing_in_place_is_refused_where_a_view_reads_it(operator: Any) -> None:
    with pytest.raises(CaptureError, match="read elsewhere"):
        out_of_place(written(operator))
