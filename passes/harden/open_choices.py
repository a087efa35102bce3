"""Open: hard choices of tokens leave a graph, as if every token had been chosen.

    gate = scatter_tokens(to(valid), indices, valid, T, 0), and all that it is joined to    →    the graph without

For the decode graph of a decoder: the prompt's tokens were chosen in the prefill, those that are generated all stay.

Exact, bit for bit the graph before the gates were inserted: everything that a gate is joined to comes first in the
joining (`settle_tokens.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from ..contract import Pass
from ..find.selections import find_selections
from ..report import Outcome
from .settle_tokens import take_out


@dataclass(frozen=True)
class OpenTokenChoices(Pass):
    """Take every hard choice of tokens out of a graph that is not compacted."""

    def apply(self, graph_module: fx.GraphModule) -> Outcome:
        """Undo the insertion of what was hardened."""
        chosen = find_selections(graph_module)
        take_out(graph_module, [selection.gate for selection in chosen])
        return Outcome(tuple(selection.name for selection in chosen))
