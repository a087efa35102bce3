"""What a pass did, what it declined and why, and what that did to the graph; printable, and JSON for artifacts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import fx


@dataclass(frozen=True)
class Declined:
    """One thing a pass looked at and left alone."""

    where: str
    reason: str


@dataclass(frozen=True)
class Outcome:
    """What `Pass.apply` says of its work: the places it changed, and those it declined."""

    fired: tuple[str, ...] = ()
    declined: tuple[Declined, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        """Whether the graph was edited at all."""
        return bool(self.fired)


@dataclass(frozen=True)
class PassReport:
    """One row of a pipeline's report."""

    name: str
    exactness: str
    fired: tuple[str, ...]
    declined: tuple[Declined, ...]
    notes: tuple[str, ...]
    op_changes: Mapping[str, int]
    seconds: float

    def to_json(self) -> dict[str, object]:
        """Plain data for an artifact's manifest."""
        return {
            "name": self.name,
            "exactness": self.exactness,
            "fired": list(self.fired),
            "declined": [{"where": d.where, "reason": d.reason} for d in self.declined],
            "notes": list(self.notes),
            "op_changes": dict(self.op_changes),
            "seconds": round(self.seconds, 4),
        }


@dataclass(frozen=True)
class Report:
    """The rows of everything that happened to a model, in order, and what the cost model says of the result."""

    passes: tuple[PassReport, ...] = ()
    notes: tuple[str, ...] = ()
    facts: Mapping[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        rows = [_row(p) for p in self.passes]
        rows += [f"    declined {d.where}: {d.reason}" for p in self.passes for d in p.declined]
        return "\n".join([*rows, *(f"note: {n}" for n in (*self._pass_notes(), *self.notes))])

    def _pass_notes(self) -> tuple[str, ...]:
        return tuple(f"{p.name}: {note}" for p in self.passes for note in p.notes)

    def extended(
        self, *passes: PassReport, notes: tuple[str, ...] = (), facts: Mapping[str, object] | None = None
    ) -> Report:
        """A report with more rows, notes and facts at its end."""
        return Report((*self.passes, *passes), (*self.notes, *notes), {**self.facts, **(facts or {})})

    def to_json(self) -> dict[str, object]:
        """Plain data for an artifact's manifest."""
        return {
            "passes": [p.to_json() for p in self.passes],
            "notes": list(self.notes),
            "facts": dict(self.facts),
        }


def count_ops(graph_module: fx.GraphModule) -> Counter[str]:
    """How often each operator stands in the graph; inputs and outputs are not counted."""
    return Counter(
        _operator(node, graph_module)
        for node in graph_module.graph.nodes
        if node.op in ("call_function", "call_module")
    )


def op_changes(before: Counter[str], after: Counter[str]) -> dict[str, int]:
    """Operators that came (+) and went (-)."""
    changes = {name: after[name] - before[name] for name in sorted({*before, *after})}
    return {name: change for name, change in changes.items() if change}


def _operator(node: fx.Node, graph_module: fx.GraphModule) -> str:
    if node.op == "call_module":
        return type(graph_module.get_submodule(str(node.target))).__name__
    return str(getattr(node.target, "__name__", node.target))


def _row(report: PassReport) -> str:
    changes = ", ".join(f"{change:+d} {name}" for name, change in report.op_changes.items()) or "graph unchanged"
    return (
        f"{report.name:<24} fired {len(report.fired):>3}  declined {len(report.declined):>3}  "
        f"{report.seconds:6.2f} s  {report.exactness}  [{changes}]"
    )
