"""Pools over real tokens only, against loops in plain torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gatefx.models.pooling import StatePool

STATE = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 1, 1, 1]])


def pool_of(kind: Any, prefix: int | None = None) -> StatePool:
    made = StatePool(kind, width=4, prefix=prefix).double()
    if kind == "attention":
        nn.init.normal_(made.query)
    return made


def by_hand(kind: str, rows: Tensor, query: Tensor | None) -> Tensor:
    if kind == "mean":
        return rows.mean(0)
    if kind == "max":
        return rows.max(0).values
    if kind == "cls":
        return rows[0]
    assert query is not None
    return torch.softmax(rows @ query / rows.shape[-1] ** 0.5, 0) @ rows


@pytest.mark.parametrize("prefix", [None, 1, 2, 99])
@pytest.mark.parametrize("kind", ["mean", "max", "attention", "cls"])
def test_pools_read_real_tokens_alone(kind: str, prefix: int | None) -> None:
    pool = pool_of(kind, prefix)
    query = pool.query if kind == "attention" else None

    wanted = torch.stack([by_hand(kind, STATE[i][MASK[i].bool()][:prefix], query) for i in range(3)])

    torch.testing.assert_close(pool(STATE, MASK), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["mean", "max", "attention", "cls"])
def test_without_a_mask_every_token_is_real(kind: str) -> None:
    pool = pool_of(kind)

    torch.testing.assert_close(pool(STATE, None), pool(STATE, torch.ones(3, 5)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["mean", "max", "attention", "cls"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_row_without_real_tokens_is_finite(kind: str, dtype: torch.dtype) -> None:
    pooled = pool_of(kind).to(dtype)(STATE.to(dtype), torch.zeros(3, 5))

    assert pooled.dtype == dtype
    assert pooled.isfinite().all()


@pytest.mark.parametrize("kind", ["mean", "max", "attention", "cls"])
def test_states_without_a_token_axis_are_their_own_pool(kind: str) -> None:
    state = STATE[:, 0]

    assert torch.equal(pool_of(kind)(state, None), state)


def test_more_axes_are_all_tokens() -> None:
    grid = torch.randn(2, 3, 4, 4, dtype=torch.float64)

    torch.testing.assert_close(pool_of("mean")(grid, None), grid.mean((1, 2)))


def test_masks_of_any_type_mean_the_same() -> None:
    pool = pool_of("mean")

    for dtype in (torch.bool, torch.int32, torch.float32):
        assert torch.equal(pool(STATE, MASK.to(dtype)), pool(STATE, MASK))


def test_a_fresh_attention_pool_is_the_mean() -> None:
    torch.testing.assert_close(
        StatePool("attention", width=4).double()(STATE, MASK), pool_of("mean")(STATE, MASK), rtol=0, atol=1e-12
    )
