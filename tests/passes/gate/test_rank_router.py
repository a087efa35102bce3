"""InsertRankRouter: one router (or one per site) between A and B of every site."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gatefx.errors import SiteError
from gatefx.models.configs.ccm import CCM
from gatefx.models.gates import RankRouter
from gatefx.passes.find.adapters import find_sites
from gatefx.passes.gate.rank_router import InsertRankRouter
from gatefx.passes.methods.ccm_schedule import routers_of

SMALL = CCM(d_router=8)


def test_the_gate_stands_between_a_and_b(adapted: Any, checked: Any) -> None:
    result = checked(InsertRankRouter(SMALL, 2.0), adapted(overrides=()))

    changes = result.reports[0].op_changes
    assert changes == {"RankRouter": 1, "select.int": 2, "unsqueeze.default": 2, "mul.Tensor": 2}
    for index, site in enumerate(find_sites(result.graph_module)[0]):
        assert site.gate is not None
        down, spread = site.gate.args
        assert down is site.down
        row = spread.args[0]
        assert row.args[1:] == (1, index)
        assert row.args[0].target == "rank_router"


def test_a_site_of_smaller_rank_reads_a_slice(adapted: Any, checked: Any) -> None:
    result = checked(InsertRankRouter(SMALL, 2.0), adapted())

    assert result.reports[0].op_changes["slice.Tensor"] == 1
    (router,) = routers_of(result.graph_module)
    assert router.site_ranks.tolist() == [4, 3]


def test_the_first_site_s_state_and_mask_feed_the_router(adapted: Any) -> None:
    graph = InsertRankRouter(SMALL, 2.0)(adapted()).graph_module
    (node,) = [n for n in graph.graph.find_nodes(op="call_module") if n.target == "rank_router"]

    assert [argument.target for argument in node.args] == ["x", "attention_mask"]


def test_each_site_s_own_state_feeds_its_router(adapted: Any, checked: Any) -> None:
    graph = checked(InsertRankRouter(CCM(d_router=8, router_input="site"), 2.0), adapted()).graph_module
    routers = routers_of(graph)

    assert [router.trunk.in_features for router in routers] == [12, 10]
    assert [router.max_rank for router in routers] == [4, 3]


@pytest.mark.parametrize(("heads", "count"), [("per_module", 2), ("per_layer", 1), ("shared", 1)])
def test_heads_follow_the_option(adapted: Any, checked: Any, heads: Any, count: int) -> None:
    graph = checked(InsertRankRouter(CCM(d_router=8, heads=heads), 2.0), adapted()).graph_module
    (router,) = routers_of(graph)

    assert router.heads.out_features == count * 4
    assert len(router.head_of_site) == 2


@pytest.mark.parametrize("gate", ["topk", "hard_concrete", "soft"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_routers_take_the_state_s_dtype(adapted: Any, checked: Any, inputs: Any, gate: Any, dtype: torch.dtype) -> None:
    graph = checked(InsertRankRouter(CCM(d_router=8, gate=gate), 2.0), adapted(dtype=dtype)).graph_module

    assert {value.dtype for value in graph.parameters()} == {dtype}
    assert graph(*inputs(dtype=dtype).values())["logits"].dtype == dtype


def test_a_router_starts_with_budget_ranks_on_average(adapted: Any, inputs: Any) -> None:
    for gate in ("hard_concrete", "soft"):
        graph = InsertRankRouter(CCM(d_router=8, gate=gate), 2.0)(adapted(overrides=())).graph_module.eval()
        graph(*inputs(batch=64).values())
        (router,) = routers_of(graph)
        assert router.record is not None
        assert float(router.record.count.detach().mean()) == pytest.approx(2.0, abs=0.5)


def test_gated_sites_are_declined_and_the_graph_stays(routed: Any, checked: Any) -> None:
    graph = routed()
    result = checked(InsertRankRouter(SMALL, 2.0), graph)

    assert result.graph_module is graph
    assert {d.where for d in result.reports[0].declined} == {"first", "second"}


def test_a_graph_without_adapters_is_refused_with_the_next_step(capture_plain: Any) -> None:
    with pytest.raises(SiteError, match=r"no adapter to route(.|\n)*gatefx\.prepare"):
        InsertRankRouter(SMALL, 2.0)(capture_plain())


def test_the_router_is_no_part_of_the_input_graph(adapted: Any) -> None:
    graph = adapted()
    InsertRankRouter(SMALL, 2.0)(graph)

    assert not [module for module in graph.modules() if isinstance(module, RankRouter)]
