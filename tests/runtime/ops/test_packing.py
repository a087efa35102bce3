"""Packing: panels hold the weights, zeros what is past them, and nothing is lost on the way back."""

from __future__ import annotations

import pytest
import torch

from gatefx.runtime.ops.packing import PANEL, direction_rows, panels_of, unpacked, whole_row


@pytest.mark.parametrize(("d_out", "d_in"), [(1, 1), (15, 3), (16, 5), (17, 4), (48, 7)])
def test_panels_hold_the_weights_and_zeros(d_out: int, d_in: int) -> None:
    weight = torch.randn(d_out, d_in)
    panels = panels_of(weight)
    count = -(-d_out // PANEL)
    assert panels.shape == (count, d_in, PANEL)
    assert panels.is_contiguous()
    for output in range(count * PANEL):
        expected = weight[output] if output < d_out else torch.zeros(d_in)
        assert torch.equal(panels[output // PANEL, :, output % PANEL], expected)
    assert torch.equal(unpacked(panels, d_out), weight)


def test_rows_are_filled_up() -> None:
    bias, lora_b = torch.randn(19), torch.randn(19, 3)
    assert torch.equal(whole_row(bias), torch.cat([bias, torch.zeros(13)]))
    rows = direction_rows(lora_b)
    assert rows.shape == (3, 32)
    assert rows.is_contiguous()
    assert torch.equal(rows[:, :19], lora_b.t())
    assert not rows[:, 19:].any()
