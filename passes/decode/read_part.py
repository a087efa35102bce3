"""Read a part: a prefill, masked or compacted → one that reads a part of a prompt behind the cache of those before it.

    k, v of layer i ─▶ attention                        cat([past_key_values.i.key, k], 2) ─▶ attention
    where(visible_keys(p, p, m, w), bias, min)     →    visible_keys(p, q, n, w)
    present.i.key = k, present_positions.g = p_g        the joined k, v, and q = cat([past_positions.g, p_g], 1),
    present_mask.g = m_g                                n = cat([past_mask.g, m_g], 1)

    p_g, m_g are what the prefill answers for a group: of a masked one every row, unseen where it was dropped (m_g = 0),
    of a compacted one the kept rows.

Sound: as `append.py` says, rows stand in any order. A gate's bias says of this part's rows what m_g says, so it leaves;
which tokens of a part stay is for its gates to say (`part_choices.py`).

Refuses linear biases, which would have to be gathered and joined too, and what `ReadCache` refuses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from ...errors import PassError
from ...models.families import ATTENTION_MASK
from ...runtime.cache_names import CacheLayout, mask_name, positions_name, present_of
from ..contract import Pass
from ..find.attention import Attention, find_attention
from ..find.last_token import VISIBLE
from ..gate.token_gate import InsertTokenGates
from ..graph.capture_decoder import POSITIONS
from ..graph.edit import answers_of
from ..report import Outcome
from .append import Reading
from .prefill import required_rows

_GATES = InsertTokenGates.__name__


@dataclass(frozen=True)
class ReadPart(Pass):
    """Read a cache in front of every attention of a prefill."""

    after: ClassVar[tuple[str, ...]] = ("ExposeCache",)

    def requires(self, graph_module: fx.GraphModule) -> None:
        """A decoder whose masks say nothing of keys but whether they are seen."""
        visible = graph_module.graph.find_nodes(op="call_function", target=VISIBLE)
        if any(node.args[0] is not node.args[1] for node in visible):
            raise PassError(
                "A prompt whose tokens are dropped is not read in parts by a model with a linear bias.",
                remedy="leave chunk out, or pass budget='100%'",
            )

    def apply(self, graph_module: fx.GraphModule) -> Outcome:
        """Take the gates' biases out, and join every group's rows."""
        for attention in find_attention(graph_module):
            _open(attention)
        rows, layout = required_rows(graph_module), graph_module.meta["cache"]
        new = _new_rows(graph_module, layout)
        _hoist([node for pair in new for node in pair], min(row.visible for row in rows))
        answers = Reading(graph_module, layout, rows, new, self.name).run()
        return Outcome(tuple(answers))


def _open(attention: Attention) -> None:
    """Let an attention read its mask as it was before a gate's bias joined it."""
    mask = attention.mask
    if mask is None:
        return
    before, *rest = mask.all_input_nodes
    if [node.meta.get("origin") for node in rest] == [_GATES]:
        attention.holder.replace_input_with(mask, before)


def _new_rows(graph_module: fx.GraphModule, layout: CacheLayout) -> list[tuple[fx.Node, fx.Node]]:
    """(positions, mask) of what a part adds to every group."""
    inputs = {str(node.target): node for node in graph_module.graph.find_nodes(op="placeholder")}
    answers = answers_of(graph_module.graph)
    found = [(inputs[POSITIONS], inputs[ATTENTION_MASK])]
    for group in range(1, layout.group_count):
        found.append((answers[present_of(positions_name(group))], answers[present_of(mask_name(group))]))
    return found


def _hoist(values: list[fx.Node], first: fx.Node) -> None:
    """Compute answers as soon as their operands are there, but not before `first`, since attentions read them now."""
    needed: set[fx.Node] = set()
    pending = list(values)
    while pending:
        node = pending.pop()
        if node not in needed and node > first and node.op == "call_function":
            needed.add(node)
            pending += node.all_input_nodes
    for node in sorted(needed):
        if node.all_input_nodes:
            max(first, *node.all_input_nodes).append(node)
