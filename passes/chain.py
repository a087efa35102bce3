"""A graph on its way through passes that depend on what was measured between them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from .contract import Pass
from .pipeline import Pipeline
from .report import PassReport


@dataclass(frozen=True)
class Chain:
    """A graph, what ran on it so far, and the reports of that.

    Attributes:
        graph: the graph as it is now.
        verify: check pass claims and legality after every pass.
        reports: of the passes that ran, in order.
    """

    graph: fx.GraphModule
    verify: bool = False
    reports: tuple[PassReport, ...] = ()

    def then(self, *passes: Pass) -> Chain:
        """The chain after more passes, whose place in the order is checked.

        Raises:
            PassError: a pass that must follow one that has not run.
        """
        pipeline = Pipeline(passes, assumes=tuple(report.name for report in self.reports))
        result = pipeline(self.graph, verify=self.verify)
        return Chain(result.graph_module, self.verify, (*self.reports, *result.reports))
