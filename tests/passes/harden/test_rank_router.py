"""HardenRankRouters: hard decisions at a level, as a dense mask."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gatefx.errors import PassError
from gatefx.models.configs.ccm import CCM
from gatefx.models.gates import HardRankRouter, RankMask, RankRouter
from gatefx.passes.gate.rank_router import InsertRankRouter
from gatefx.passes.harden.freeze import FreezeRegularization
from gatefx.passes.harden.rank_router import LEVEL, HardenRankRouters
from gatefx.passes.pipeline import Pipeline

FROZEN = ("FreezeRegularization",)


def harden(graph: Any, checked: Any, level: float = 2.0, rule: str = "fixed", buckets: Any = (1, 2, 4)) -> Any:
    frozen = FreezeRegularization()(graph).graph_module
    return checked(Pipeline((HardenRankRouters(level, rule, buckets),), assumes=FROZEN), frozen)


def modules_of(graph: Any, kind: type) -> list[Any]:
    return [module for module in graph.modules() if isinstance(module, kind)]


def test_a_router_becomes_indices_and_a_mask(routed: Any, checked: Any, inputs: Any) -> None:
    result = harden(routed(), checked)

    assert result.reports[0].fired == ("rank_router",)
    assert result.reports[0].op_changes == {"HardRankRouter": 1, "RankMask": 1, "RankRouter": -1}
    assert result.reports[0].exactness.startswith("approximate")
    assert LEVEL in dict(result.graph_module.named_buffers())
    assert not [n for n in result.graph_module.graph.find_nodes(op="call_module") if n.target == "rank_router"]
    assert result.graph_module(*inputs().values())["logits"].shape == (3, 3)


def test_a_fixed_count_equals_the_training_router_of_that_budget(routed: Any, checked: Any, inputs: Any) -> None:
    graph = routed(CCM(d_router=8, k="fixed"), budget=2.0)
    hard = harden(graph, checked).graph_module

    given = inputs(batch=6, tokens=4).values()
    torch.testing.assert_close(hard(*given)["logits"], graph(*given)["logits"], rtol=0, atol=1e-6)


def test_the_level_decides_and_may_change_in_place(routed: Any, checked: Any, inputs: Any) -> None:
    hard = harden(routed(), checked).graph_module
    counts: list[torch.Tensor] = []
    (router,) = modules_of(hard, HardRankRouter)
    router.register_forward_hook(lambda *call: counts.append((call[2] >= 0).sum(-1)))

    for level in (1.0, 2.0, 4.0):
        getattr(hard, LEVEL).fill_(level)
        hard(*inputs().values())

    assert [count.unique().tolist() for count in counts] == [[1], [2], [3, 4]]


@pytest.mark.parametrize("router_input", ["first_site", "site"])
@pytest.mark.parametrize("gate", ["topk", "hard_concrete", "soft"])
def test_every_router_of_every_kind_is_hardened(routed: Any, checked: Any, gate: Any, router_input: Any) -> None:
    graph = routed(CCM(d_router=8, gate=gate, router_input=router_input))
    rule = "coverage" if gate == "topk" else "threshold"

    hard = harden(graph, checked, level=-1.0 if gate == "topk" else 0.5, rule=rule).graph_module

    count = 1 if router_input == "first_site" else 2
    assert len(modules_of(hard, HardRankRouter)) == len(modules_of(hard, RankMask)) == count
    assert all(not router.training for router in modules_of(hard, RankRouter))


def test_buckets_end_with_the_largest_rank(routed: Any, checked: Any) -> None:
    (router,) = modules_of(harden(routed(), checked, buckets=(2, 8, 16)).graph_module, HardRankRouter)

    assert router.buckets.tolist() == [2, 4]


def test_a_graph_without_routers_is_left_alone(adapted: Any, checked: Any) -> None:
    graph = FreezeRegularization()(adapted()).graph_module

    result = checked(Pipeline((HardenRankRouters(1.0, "fixed", (2,)),), assumes=FROZEN), graph)
    assert result.graph_module is graph


def test_it_must_follow_freezing(routed: Any) -> None:
    with pytest.raises(PassError, match="HardenRankRouters must run after FreezeRegularization"):
        Pipeline((InsertRankRouter(CCM(), 2.0), HardenRankRouters(1.0, "fixed", (2,))))
