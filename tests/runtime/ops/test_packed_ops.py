"""Layers over packed weights: what the operators on the unpacked ones compute, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gatefx.errors import InputError
from gatefx.runtime.ops.linear_ops import gated_linear, token_gated_linear
from gatefx.runtime.ops.packed_ops import packed_gated_linear, packed_routed_linear, packed_token_gated_linear
from gatefx.runtime.ops.packing import direction_rows, panels_of, whole_row
from gatefx.runtime.ops.update_ops import routed_linear

BATCH, D_IN, RANK = 3, 6, 4


def normal(*sizes: int) -> Tensor:
    return torch.randn(sizes, dtype=torch.float64)


def calls(middle: tuple[int, ...], d_out: int) -> list[tuple[object, list[object], Tensor]]:
    """(operator, its arguments, what it must answer), one of each operator."""
    torch.manual_seed(d_out)
    x, weight, other, bias = normal(BATCH, *middle, D_IN), normal(d_out, D_IN), normal(d_out, D_IN), normal(d_out)
    lora_a, lora_b, scale = normal(RANK, D_IN), normal(d_out, RANK), torch.tensor(0.5, dtype=torch.float64)
    indices = torch.tensor([[-1, -1, -1, -1], [2, 0, -1, -1], [0, 1, 2, 3]])
    ranks, tokens = [indices, scale], [lora_b.t() @ lora_b, torch.tensor(1.0, dtype=torch.float64), scale]
    choice = torch.rand(BATCH, *middle) < 0.5
    layer = [x, panels_of(weight), whole_row(bias), lora_a, direction_rows(lora_b)]
    return [
        (packed_gated_linear, [*layer, *ranks, d_out], gated_linear(x, weight, bias, lora_a, lora_b, *ranks)),
        (
            packed_token_gated_linear,
            [*layer, *tokens, d_out],
            token_gated_linear(x, weight, bias, lora_a, lora_b, *tokens),
        ),
        (
            packed_routed_linear,
            [x, panels_of(weight), panels_of(other), whole_row(bias), choice, d_out],
            routed_linear(x, weight, other, bias, choice),
        ),
    ]


@pytest.mark.parametrize("middle", [(), (5,), (2, 3), (0,)])
@pytest.mark.parametrize("d_out", [7, 16, 33])
def test_they_mean_the_operators_on_the_unpacked_weights(middle: tuple[int, ...], d_out: int) -> None:
    for operator, arguments, expected in calls(middle, d_out):
        torch.testing.assert_close(operator(*arguments), expected, rtol=0, atol=1e-12)  # type: ignore[operator]


def test_the_operators_keep_torch_s_rules() -> None:
    for operator, arguments, _ in calls((5,), 17):
        torch.library.opcheck(operator, arguments)  # type: ignore[arg-type]


@pytest.mark.usefixtures("portable_operators")
def test_a_layer_that_is_packed_for_other_outputs_is_refused() -> None:
    for operator, arguments, _ in calls((5,), 17):
        for wrong in (16, 33):
            with pytest.raises(InputError, match="packed layer"):
                operator(*arguments[:-1], wrong)  # type: ignore[operator]
        with pytest.raises(InputError):
            operator(arguments[0][..., 1:], *arguments[1:])  # type: ignore[operator, index]
