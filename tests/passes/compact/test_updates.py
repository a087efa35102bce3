"""SkipUpdates: the decision before B is read, for the same numbers as the masked graph; and what stays masked."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gatefx.errors import PassError
from gatefx.models.configs.tspeft import TSPEFT
from gatefx.passes.compact.updates import SkipUpdates
from gatefx.passes.find.thresholds import find_thresholded
from gatefx.passes.gate.update_threshold import InsertUpdateThresholds
from gatefx.passes.harden.freeze import FreezeRegularization
from gatefx.passes.harden.static_threshold import SettleThresholds
from gatefx.passes.harden.update_threshold import LEVEL, HardenUpdateThresholds
from gatefx.passes.pipeline import Pipeline

BEFORE = ("FreezeRegularization", "HardenUpdateThresholds")


def skipping(*sites: str) -> Pipeline:
    return Pipeline((SkipUpdates(sites or None),), assumes=BEFORE)


def hardened(graph: Any, level: float = 0.0) -> Any:
    gated = InsertUpdateThresholds(TSPEFT())(graph).graph_module.eval()
    return Pipeline((FreezeRegularization(), HardenUpdateThresholds(level)))(gated).graph_module


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("level", [0.0, 0.3, 1.0, torch.inf])
def test_it_equals_the_masked_graph(
    adapted: Any, checked: Any, inputs: Any, tolerance: Any, dtype: torch.dtype, level: float
) -> None:
    graph = hardened(adapted(dtype=dtype), level)
    skips = checked(skipping(), graph).graph_module

    assert find_thresholded(skips) == ()
    for batch, tokens in ((1, 1), (3, 5), (6, 2)):
        values = inputs(batch, tokens, seed=batch, dtype=dtype).values()
        torch.testing.assert_close(skips(*values)["logits"], graph(*values)["logits"], rtol=0, atol=tolerance[dtype])


def test_both_graphs_read_one_level(adapted: Any, inputs: Any) -> None:
    graph = hardened(adapted())
    skips = skipping()(graph).graph_module
    values = inputs(6, 8).values()
    before = skips(*values)["logits"]
    getattr(graph, LEVEL).fill_(0.5)

    assert not torch.equal(skips(*values)["logits"], before)
    torch.testing.assert_close(skips(*values)["logits"], graph(*values)["logits"], rtol=0, atol=1e-5)


def test_named_sites_alone_skip(adapted: Any, checked: Any) -> None:
    result = checked(skipping("second"), hardened(adapted()))

    assert result.reports[0].fired == ("second",)
    assert "second" not in [item.site.name for item in find_thresholded(result.graph_module)]


def test_sites_with_rank_gates_stay_masked_and_say_so(routed: Any, checked: Any) -> None:
    graph = hardened(routed())
    result = checked(skipping(), graph)

    assert result.graph_module is graph
    reasons = {declined.reason for declined in result.reports[0].declined}
    assert reasons == {"its ranks are gated per example too; it stays masked"}


def test_settled_gates_leave_the_plain_adapter_or_the_base(adapted: Any, checked: Any, inputs: Any) -> None:
    plain = adapted()
    graph, values = hardened(plain), inputs().values()
    opened = checked(SettleThresholds(), graph).graph_module
    names = tuple(item.site.name for item in find_thresholded(graph))
    shut = checked(SettleThresholds((), names), graph).graph_module
    getattr(graph, LEVEL).fill_(torch.inf)

    assert torch.equal(opened(*values)["logits"], plain(*values)["logits"])
    assert torch.equal(shut(*values)["logits"], graph(*values)["logits"])
    assert not [name for name, _ in shut.named_parameters() if "lora_" in name]


def test_it_must_follow_hardening() -> None:
    with pytest.raises(PassError, match="SkipUpdates must run after HardenUpdateThresholds"):
        Pipeline((FreezeRegularization(), SkipUpdates()))
