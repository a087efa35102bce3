"""A pipeline refuses a wrong order when it is built, runs its passes one by one, and names itself for caches."""

from __future__ import annotations

from typing import Any

import pytest

from gatefx.errors import PassError, SiteError
from gatefx.models.configs.ccm import CCM
from gatefx.passes.compact.ranks import CompactRanks
from gatefx.passes.gate.lora import AttachLora
from gatefx.passes.gate.rank_router import InsertRankRouter
from gatefx.passes.harden.freeze import FreezeRegularization
from gatefx.passes.harden.rank_router import HardenRankRouters
from gatefx.passes.pipeline import Pipeline
from gatefx.passes.simplify.dead_code import EliminateDeadCode

HARDEN, COMPACT = HardenRankRouters(2.0, "fixed", (1, 2, 4)), CompactRanks(("first",))
ALL = (AttachLora(4, 8.0, 0.1, "all-linear"), InsertRankRouter(CCM(d_router=8), 2.0), FreezeRegularization(), HARDEN)


def test_a_wrong_order_is_refused_with_names_and_a_remedy() -> None:
    with pytest.raises(PassError, match="CompactRanks must run after HardenRankRouters") as caught:
        Pipeline((FreezeRegularization(), COMPACT, HARDEN))

    text = str(caught.value)
    assert "FreezeRegularization → CompactRanks → HardenRankRouters" in text
    assert "assumes" in text


def test_what_already_ran_counts() -> None:
    Pipeline((COMPACT,), assumes=("HardenRankRouters",))


def test_a_pipeline_inside_a_pipeline_still_counts_as_having_run() -> None:
    inner = Pipeline((FreezeRegularization(), HARDEN))

    Pipeline((inner, COMPACT))


def test_a_pipeline_inside_a_pipeline_is_held_to_the_order_too() -> None:
    inner = Pipeline((COMPACT,), assumes=("HardenRankRouters",))

    with pytest.raises(PassError, match="must run after HardenRankRouters"):
        Pipeline((FreezeRegularization(), inner))


def test_it_runs_in_order_with_one_row_per_pass(capture_plain: Any) -> None:
    result = Pipeline((*ALL, CompactRanks(("first", "second"))))(capture_plain(), verify=True)

    names = [report.name for report in result.reports]
    assert names == [
        "AttachLora",
        "InsertRankRouter",
        "FreezeRegularization",
        "HardenRankRouters",
        "CompactRanks",
    ]
    assert all(report.fired for report in result.reports)
    with pytest.raises(SiteError, match="no adapter to route"):
        Pipeline(ALL)(result.graph_module)  # compacted adapters are neither gated again nor overwritten


def test_no_pass_and_no_change_are_the_same_object(capture_plain: Any) -> None:
    graph = capture_plain()

    assert Pipeline(())(graph, verify=True).graph_module is graph
    assert Pipeline((EliminateDeadCode(),))(graph, verify=True).graph_module is graph


def test_it_is_run_by_calling_it(capture_plain: Any) -> None:
    with pytest.raises(PassError, match="run by calling it"):
        Pipeline(()).apply(capture_plain())


def test_uuid_covers_options_order_and_passes() -> None:
    options = [
        (),
        (FreezeRegularization(),),
        (EliminateDeadCode(),),
        (FreezeRegularization(), EliminateDeadCode()),
        (EliminateDeadCode(), FreezeRegularization()),
        (FreezeRegularization(), HARDEN),
        (FreezeRegularization(), HardenRankRouters(3.0, "fixed", (1, 2, 4))),
        (FreezeRegularization(), HardenRankRouters(2.0, "fixed", (2, 4))),
        (FreezeRegularization(), Pipeline((HARDEN,), assumes=("FreezeRegularization",))),
    ]
    digests = [Pipeline(passes).uuid() for passes in options]

    assert len(set(digests)) == len(digests)
    assert digests == [Pipeline(passes).uuid() for passes in options]
