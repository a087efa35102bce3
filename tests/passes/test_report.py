"""Reports print as one row a pass and turn into plain JSON."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from gatefx.passes.gate.lora import AttachLora
from gatefx.passes.report import Declined, Outcome, PassReport, Report, count_ops, op_changes

ROW = PassReport("Some", "exact", ("a", "b"), (Declined("c", "too small"),), ("noted",), {"mul": 2, "add": -1}, 0.25)


def test_an_outcome_changed_where_something_fired() -> None:
    assert Outcome(("x",)).changed
    assert not Outcome((), (Declined("x", "y"),), ("z",)).changed


def test_rows_name_what_fired_what_declined_and_why() -> None:
    text = str(Report((ROW,), ("at the end",)))

    assert "Some" in text
    assert "fired   2  declined   1" in text
    assert "+2 mul, -1 add" in text
    assert "declined c: too small" in text
    assert text.endswith("note: Some: noted\nnote: at the end")


def test_a_pass_without_effect_says_so() -> None:
    assert "graph unchanged" in str(Report((PassReport("None", "exact", (), (), (), {}, 0.0),)))


def test_reports_are_json_all_the_way_down() -> None:
    report = Report((ROW,), ("n",), {"mean": 1.5})

    assert json.loads(json.dumps(report.to_json())) == {
        "passes": [
            {
                "name": "Some",
                "exactness": "exact",
                "fired": ["a", "b"],
                "declined": [{"where": "c", "reason": "too small"}],
                "notes": ["noted"],
                "op_changes": {"mul": 2, "add": -1},
                "seconds": 0.25,
            }
        ],
        "notes": ["n"],
        "facts": {"mean": 1.5},
    }


def test_extending_leaves_the_report_as_it_was() -> None:
    report = Report((ROW,), ("n",), {"a": 1})
    longer = report.extended(ROW, notes=("m",), facts={"b": 2})

    assert (len(longer.passes), longer.notes, longer.facts) == (2, ("n", "m"), {"a": 1, "b": 2})
    assert (len(report.passes), report.notes, report.facts) == (1, ("n",), {"a": 1})


def test_ops_are_counted_by_operator_and_module_class(capture_plain: Any) -> None:
    graph = capture_plain()

    counted = count_ops(graph)
    assert counted["linear.default"] == 3
    assert counted["Dropout"] == 1
    assert not any("placeholder" in name or "output" in name for name in counted)
    attached = AttachLora(4, 8.0, 0.0, "all-linear")(graph).graph_module
    assert op_changes(counted, count_ops(attached)) == {"add.Tensor": 2, "linear.default": 4, "mul.Tensor": 2}
    assert op_changes(Counter(a=1), Counter(b=2)) == {"a": -1, "b": 2}
