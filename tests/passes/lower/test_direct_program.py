from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gatefx.passes.lower.direct_program import direct
from gatefx.passes.lower.dynamic_export import export_dynamic

# torch's own, while it decomposes
pytestmark = pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning")

aten = torch.ops.aten


class Computes(nn.Module):
    """A weight, and what a function makes of it and the input (B, T, 4)."""

    def __init__(self, function: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))
        self.function = function

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"y": self.function(x, self.weight)}


def program(function: Callable[[Tensor, Tensor], Any]) -> torch.export.ExportedProgram:
    return direct(export_dynamic(Computes(function).eval(), {"x": torch.randn(2, 3, 4)}))


def plain(x: Tensor, weight: Tensor) -> Tensor:
    y = nn.functional.linear(x, weight).transpose(0, 1).contiguous().view(-1, 4)
    both = (y > 0) & (y < 1)
    either = ((y > 0) | (y < -1)).expand_as(both)
    first, second = torch.chunk(y.unflatten(-1, (2, 2)).flatten(1, 2), 2, -1)
    third, fourth = y.unbind(-1)[:2]
    sums = torch.cat([first, second], -1) * either + (third + fourth)[:, None]
    return torch.min(y, sums).detach() + both.to(torch.float32) + both.to("cpu", torch.promote_types(x.dtype, y.dtype))


def test_a_program_of_known_operators_is_not_traced_again() -> None:
    found = program(plain)
    assert found.run_decompositions({}) is found
    spelt = {node.target for node in found.graph.nodes}
    assert {aten._to_copy.default, aten.clone.default, aten.bitwise_and.Tensor, aten.minimum.default} <= spelt


def test_spelling_changes_no_number() -> None:
    module = Computes(plain).eval()
    found = direct(export_dynamic(module, {"x": torch.randn(2, 3, 4)})).module(False)
    for shape in ((1, 1, 4), (5, 7, 4)):
        x = torch.randn(shape)
        assert torch.equal(found(x)["y"], module(x)["y"])


@pytest.mark.parametrize(
    "function",
    [
        lambda x, weight: (x + weight.sum()).add_(1.0),
        lambda x, weight: (x @ weight).flatten(),
        lambda x, weight: torch.movedim(x @ weight, 0, 1),
    ],
    ids=["changes its input", "joins two sizes that vary", "a view that is not known"],
)
def test_other_operators_have_the_program_decomposed(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    found = program(function)
    again = found.run_decompositions({})
    assert again is not found
    assert not any(getattr(getattr(node.target, "_schema", None), "is_mutable", False) for node in again.graph.nodes)


def test_what_the_table_holds_is_decomposed() -> None:
    found = program(lambda x, weight: nn.functional.silu(x @ weight))
    table = {aten.silu.default: lambda x: x * torch.sigmoid(x)}
    assert aten.silu.default in {node.target for node in found.graph.nodes}
    assert aten.silu.default not in {node.target for node in found.run_decompositions(table).graph.nodes}


def test_without_a_table_everything_is_decomposed() -> None:
    found = program(nn.functional.linear)
    assert aten.linear.default not in {node.target for node in found.run_decompositions().graph.nodes}
