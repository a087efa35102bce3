"""The contract holds callers and authors to their word."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import fx

from gatefx.errors import PassError, SiteError
from gatefx.passes.contract import Approximate, Exact, Pass
from gatefx.passes.graph.canonical import canonical_text
from gatefx.passes.report import Declined, Outcome

aten = torch.ops.aten


@dataclass(frozen=True)
class Rename(Pass):
    """tanh → sigmoid, with a lie where a test asks for one."""

    edit: bool = True
    claim: bool = True
    illegal: bool = False

    def apply(self, graph_module: fx.GraphModule) -> Outcome:
        for node in graph_module.graph.find_nodes(op="call_function", target=aten.tanh.default):
            if self.edit:
                node.target = torch.sigmoid if self.illegal else aten.sigmoid.default
        return Outcome(("tanh",) if self.claim else (), (Declined("here", "because"),), ("a note",))


def test_a_change_is_made_on_a_copy(capture_plain: Any) -> None:
    graph = capture_plain()
    before, code = canonical_text(graph), graph.code

    result = Rename()(graph, verify=True)

    assert (canonical_text(graph), graph.code) == (before, code)
    assert "sigmoid" in result.graph_module.code
    (report,) = result.reports
    assert (report.name, report.exactness, report.fired) == ("Rename", "exact", ("tanh",))
    assert (report.declined, report.notes) == ((Declined("here", "because"),), ("a note",))
    assert report.op_changes == {"sigmoid.default": 2, "tanh.default": -2}
    assert report.seconds > 0


def test_without_a_change_the_very_object_comes_back(capture_plain: Any) -> None:
    graph = capture_plain()

    assert Rename(edit=False, claim=False)(graph, verify=True).graph_module is graph


def test_claiming_a_change_that_was_not_made_is_caught(capture_plain: Any) -> None:
    with pytest.raises(PassError, match="Rename claims a change, but the graph's canonical text is the same"):
        Rename(edit=False)(capture_plain(), verify=True)


def test_hiding_a_change_is_caught(capture_plain: Any) -> None:
    graph = capture_plain()

    with pytest.raises(PassError, match="Rename claims no change, but the graph's canonical text differs"):
        Rename(claim=False)(graph, verify=True)
    assert Rename(claim=False)(graph).graph_module is graph, "and even unverified it cannot leak"
    assert "tanh" in graph.code


def test_an_illegal_result_is_caught(capture_plain: Any) -> None:
    with pytest.raises(PassError, match="ATen functions only"):
        Rename(illegal=True)(capture_plain(), verify=True)


def test_requires_runs_first_and_ensures_last(capture_plain: Any) -> None:
    calls: list[str] = []

    @dataclass(frozen=True)
    class Picky(Rename):
        refuse: str = ""

        def requires(self, graph_module: fx.GraphModule) -> None:
            calls.append("requires")
            if self.refuse == "requires":
                raise SiteError("no")

        def apply(self, graph_module: fx.GraphModule) -> Outcome:
            calls.append("apply")
            return super().apply(graph_module)

        def ensures(self, graph_module: fx.GraphModule) -> None:
            calls.append("ensures")
            if self.refuse == "ensures":
                raise PassError("broken promise")

    Picky()(capture_plain(), verify=True)
    assert calls == ["requires", "apply", "ensures"]
    calls.clear()
    with pytest.raises(SiteError):
        Picky(refuse="requires")(capture_plain())
    assert calls == ["requires"]
    with pytest.raises(PassError, match="broken promise"):
        Picky(refuse="ensures")(capture_plain())


def test_passes_are_frozen_and_say_their_options() -> None:
    assert repr(Rename(edit=False)) == "Rename(edit=False, claim=True, illegal=False)"
    assert Rename() == Rename()
    with pytest.raises(dataclasses.FrozenInstanceError):
        Rename().edit = False  # type: ignore[misc]


def test_exactness_reads_as_words() -> None:
    assert str(Exact()) == "exact"
    assert str(Approximate("within 1 %")) == "approximate (within 1 %)"
