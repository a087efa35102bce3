"""CompactRanks: active directions gathered instead of masked, for the same numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx

from gatefx.errors import PassError
from gatefx.models.configs.ccm import CCM
from gatefx.passes.compact.ranks import CompactRanks
from gatefx.passes.harden.freeze import FreezeRegularization
from gatefx.passes.harden.rank_router import LEVEL, HardenRankRouters
from gatefx.passes.pipeline import Pipeline

BEFORE = ("FreezeRegularization", "HardenRankRouters")
SITES = ("first", "second")


@pytest.fixture
def hardened(routed: Any) -> Any:
    def make(level: float = 2.0, rule: str = "fixed", k_min: int = 1, **given: Any) -> fx.GraphModule:
        graph = routed(CCM(d_router=8, k_min=k_min), **given)
        passes = (FreezeRegularization(), HardenRankRouters(level, rule, (1, 2, 3, 4)))
        return Pipeline(passes)(graph).graph_module

    return make


def compact(*sites: str) -> Pipeline:
    return Pipeline((CompactRanks(sites),), assumes=BEFORE)


def test_the_masked_branch_becomes_one_operator(hardened: Any, checked: Any) -> None:
    result = checked(compact(*SITES), hardened())

    report = result.reports[0]
    assert report.fired == SITES
    assert report.op_changes == {
        "RankMask": -1,
        "add.Tensor": -2,
        "gated_lora.default": 2,
        "linear.default": -4,
        "mul.Tensor": -4,
        "unsqueeze.default": -2,
    }
    assert report.exactness == "exact"


@pytest.mark.parametrize("level", [0.0, 1.0, 2.0, 3.0, 4.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_equals_the_masked_graph(
    hardened: Any, checked: Any, inputs: Any, tolerance: Any, level: float, dtype: torch.dtype
) -> None:
    graph = hardened(level, k_min=1 if level else 0, dtype=dtype) if level else hardened(1.0, dtype=dtype)
    compacted = checked(compact(*SITES), graph).graph_module

    for batch, tokens in ((1, 1), (3, 5), (6, 2)):
        given = inputs(batch, tokens, seed=batch, dtype=dtype).values()
        torch.testing.assert_close(compacted(*given)["logits"], graph(*given)["logits"], rtol=0, atol=tolerance[dtype])


def test_examples_of_different_rank_in_one_batch(hardened: Any, checked: Any, inputs: Any, tolerance: Any) -> None:
    graph = hardened(-1.2, rule="coverage", dtype=torch.float64)
    compacted = checked(compact(*SITES), graph).graph_module
    counts: list[torch.Tensor] = []
    compacted.get_submodule("hard_rank_router").register_forward_hook(
        lambda *call: counts.append((call[2] >= 0).sum(-1))
    )

    given = inputs(16, 5, dtype=torch.float64).values()
    torch.testing.assert_close(
        compacted(*given)["logits"], graph(*given)["logits"], rtol=0, atol=tolerance[torch.float64]
    )
    assert len(counts[0].unique()) > 1, "the example must vary, or the test shows nothing"


def test_only_named_sites_are_compacted(hardened: Any, checked: Any) -> None:
    result = checked(compact("second"), hardened())

    assert result.reports[0].fired == ("second",)
    assert result.reports[0].op_changes["gated_lora.default"] == 1
    assert "RankMask" not in result.reports[0].op_changes


def test_the_scale_becomes_a_tensor(hardened: Any, checked: Any) -> None:
    buffers = dict(checked(compact(*SITES), hardened()).graph_module.named_buffers())

    assert {name: float(value) for name, value in buffers.items() if name.endswith("scale")} == {
        "first.lora_A.default.scale": 2.0,
        "second.lora_A.default.scale": 2.0,
    }


@pytest.mark.parametrize("sites", [(), ("nonsense",)])
def test_nothing_named_is_the_same_object(hardened: Any, checked: Any, sites: Any) -> None:
    graph = hardened()

    assert checked(compact(*sites), graph).graph_module is graph


def test_training_gates_are_declined(routed: Any, adapted: Any, checked: Any) -> None:
    for graph in (routed(), adapted()):
        result = checked(compact(*SITES), graph)
        assert result.graph_module is graph
        assert {d.reason for d in result.reports[0].declined} == {"its gate is not the mask of a hardened rank router"}


def test_it_must_follow_hardening() -> None:
    with pytest.raises(PassError, match="CompactRanks must run after HardenRankRouters"):
        Pipeline((FreezeRegularization(), CompactRanks(SITES)))


def test_both_graphs_read_one_level(hardened: Any, checked: Any, inputs: Any) -> None:
    graph = hardened()
    compacted = checked(compact(*SITES), graph).graph_module
    given = inputs().values()
    before = compacted(*given)["logits"]

    getattr(graph, LEVEL).fill_(4.0)

    after = compacted(*given)["logits"]
    assert not torch.equal(after, before)
    torch.testing.assert_close(after, graph(*given)["logits"], rtol=0, atol=1e-5)
