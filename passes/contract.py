"""The contract of a pass: what it needs, what it promises, and the checks that hold its author to both.

A pass is a frozen dataclass whose fields are its options. Calling it runs

    requires(graph) → apply(a private copy) → legality, ensures(result)

and returns either an edited copy or, where nothing fired, the very object it was given. A pass that claims to have
changed nothing while its copy's canonical text differs broke the contract, and so did one that claims a change and
left the text as it was; both raise.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from torch import fx

from ..errors import PassError
from .graph.canonical import canonical_text
from .graph.edit import copy_graph
from .graph.legality import check_legality
from .report import Outcome, PassReport, count_ops, op_changes


@dataclass(frozen=True)
class Exact:
    """The result computes what the input computed, up to the rounding of reordered arithmetic."""

    def __str__(self) -> str:
        return "exact"


@dataclass(frozen=True)
class Approximate:
    """The result computes something else, within what `bound` says."""

    bound: str

    def __str__(self) -> str:
        return f"approximate ({self.bound})"


@dataclass(frozen=True)
class PassResult:
    """The graph after a pass (the given object if nothing fired), and a report row for each pass that ran."""

    graph_module: fx.GraphModule
    reports: tuple[PassReport, ...]


class Pass(ABC):
    """One rewrite of a graph. Subclasses are frozen dataclasses; their fields are their options."""

    #: Class names of passes that must have run before this one.
    after: ClassVar[tuple[str, ...]] = ()
    exactness: ClassVar[Exact | Approximate] = Exact()

    @property
    def name(self) -> str:
        """The pass's name in reports and errors."""
        return type(self).__name__

    def requires(self, graph_module: fx.GraphModule) -> None:  # noqa: B027  # most passes take any legal graph
        """Check what the pass needs of its input.

        Raises:
            GatefxError: the graph lacks it.
        """

    @abstractmethod
    def apply(self, graph_module: fx.GraphModule) -> Outcome:
        """Edit `graph_module` (a private copy) and say what was done."""

    def ensures(self, graph_module: fx.GraphModule) -> None:  # noqa: B027  # most passes promise legality alone
        """Check what the pass promises of its result.

        Raises:
            PassError: the promise is broken.
        """

    @final
    def __call__(self, graph_module: fx.GraphModule, *, verify: bool = False) -> PassResult:
        """Run the pass. `verify` also checks legality and the truth of the pass's own claim.

        Raises:
            GatefxError: the input lacks what the pass requires.
            PassError: the pass broke its contract.
        """
        return self._run(graph_module, verify=verify)

    def _run(self, graph_module: fx.GraphModule, *, verify: bool) -> PassResult:
        started = time.perf_counter()
        self.requires(graph_module)
        edited = copy_graph(graph_module)
        outcome = self.apply(edited)
        if verify:
            self._check_claim(graph_module, edited, outcome)
        result = edited if outcome.changed else graph_module
        if outcome.changed:
            edited.recompile()
            self.ensures(edited)
            if verify:
                check_legality(edited)
        report = PassReport(
            self.name,
            str(self.exactness),
            outcome.fired,
            outcome.declined,
            outcome.notes,
            op_changes(count_ops(graph_module), count_ops(result)),
            time.perf_counter() - started,
        )
        return PassResult(result, (report,))

    def _check_claim(self, before: fx.GraphModule, after: fx.GraphModule, outcome: Outcome) -> None:
        differs = canonical_text(before) != canonical_text(after)
        if differs != outcome.changed:
            claim, truth = ("a change", "is the same") if outcome.changed else ("no change", "differs")
            raise PassError(f"{self.name} claims {claim}, but the graph's canonical text {truth}.")


def checked_passes(given: object) -> Sequence[Pass]:
    """What a user gave as passes.

    Raises:
        PassError: it is no list of passes.
    """
    if isinstance(given, (list, tuple)) and all(isinstance(item, Pass) for item in given):
        return given
    raise PassError(
        "The option 'passes' holds gatefx passes.",
        given=repr(given),
        expected="a list of objects of subclasses of gatefx.passes.contract.Pass",
    )
