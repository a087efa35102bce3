"""PrecomputeHira: a HiRA update's weight is built once, not at every call."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gatefx.passes.simplify.hira_weight import PrecomputeHira


@pytest.mark.parametrize("gated", [False, True])
def test_a_hira_weight_is_built_once(modulated: Any, checked: Any, inputs: Any, tolerance: Any, gated: bool) -> None:
    graph = modulated("hira", gated=gated, dtype=torch.float64)
    result = checked(PrecomputeHira(), graph)

    assert result.reports[0].op_changes == {"mm.default": -2, "mul.Tensor": -2}
    assert {name for name, _ in result.graph_module.named_parameters() if "update" in name} == {
        "first.update_weight",
        "second.update_weight",
    }
    given = inputs(dtype=torch.float64).values()
    torch.testing.assert_close(
        result.graph_module(*given)["logits"], graph(*given)["logits"], rtol=0, atol=tolerance[torch.float64]
    )
    assert checked(PrecomputeHira(), (lora := modulated("lora"))).graph_module is lora
