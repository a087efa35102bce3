"""How operators read operands that hold kept tokens only: which axes count tokens, which of them are to be gathered.

Grows while `kept_tokens.py` walks the graph in order. Whatever cannot be read so raises `Impossible` with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from ..graph.edit import shape_of
from .token_rules import NOWHERE, Axes, is_view, rank_of, rule_of, size_key


@dataclass(frozen=True)
class Want:
    """How a user must read an operand.

    Attributes:
        axes: to gather along, none of them 0, counted when ones are put in front until there are `rank` axes.
        rank: number of axes; copies: c, where the user has c rows an example on axis 0.
    """

    axes: Axes
    rank: int
    copies: int


class Impossible(Exception):  # noqa: N818  # a way out of a rule, caught by the walk
    """Why a node cannot run on the kept tokens."""


class Operands:
    """What is known of the values computed from one gate.

    Attributes:
        axes: value → its token axes; wants: user → operand → how it must be read.
        by_example: values whose axis 0 counts examples, or c rows of each.
    """

    def __init__(self, gate: fx.Node) -> None:
        self.batch, self.length = (size_key(size) for size in shape_of(gate))
        self.axes: dict[fx.Node, Axes] = {gate: frozenset({1})}
        self.wants: dict[fx.Node, dict[fx.Node, Want]] = {}
        self.by_example = {gate}

    def aligned(self, source: fx.Node, rank: int) -> Axes:
        """The token axes of an operand, counted in a result of `rank` axes."""
        return frozenset(axis + rank - rank_of(source) for axis in self.axes.get(source, NOWHERE))

    def want(self, node: fx.Node, source: fx.Node, axes: Axes, rank: int) -> None:
        """Let `node` read `source` gathered along `axes` of `rank`, as far as it is not gathered already."""
        if not isinstance(source.meta.get("val"), torch.Tensor):
            return
        shape = (*(1,) * (rank - rank_of(source)), *shape_of(source))
        have = self.aligned(source, rank)
        missing = frozenset(axis for axis in axes - have if size_key(shape[axis]) != 1)
        other = [axis for axis in missing if size_key(shape[axis]) != self.length]
        if other or 0 in missing or not have <= axes:
            raise Impossible(f"{source.name} does not count its tokens where the others do")
        if missing:
            copies = self._copies(node, rank)
            if size_key(shape[0]) not in (1, self.batch, copies * self.batch):  # type: ignore[operator]  # symbols multiply
                raise Impossible(f"axis 0 of {source.name} does not count examples")
            self.wants.setdefault(node, {})[source] = Want(missing, rank, copies)

    def keeps_examples(self, node: fx.Node, source: fx.Node) -> bool:
        """Whether axis 0 of the result counts examples because that of an operand does."""
        if source not in self.by_example:
            return False
        value = node.meta["val"]
        if not isinstance(value, torch.Tensor):
            return True
        rule = rule_of(node)
        if rule is None or is_view(node):
            if self.is_flat(node) or self.is_flat(source):
                return True
            return value.dim() > 0 and _ratio(size_key(value.shape[0]), self.batch) is not None
        return rule(node, source, frozenset({0})) == frozenset({0})

    def is_flat(self, node: fx.Node) -> bool:
        """Whether axis 0 counts the tokens of all examples, one example's after another's."""
        value = node.meta["val"]
        rows = isinstance(value, torch.Tensor) and value.dim() > 0 and size_key(value.shape[0])
        return bool(rows == self.batch * self.length)  # type: ignore[operator]  # symbols multiply

    def check_answer(self, value: fx.Node) -> None:
        """Refuse an output whose kept tokens cannot be scattered back."""
        if value not in self.by_example or 0 in self.axes[value] or size_key(shape_of(value)[0]) != self.batch:
            raise Impossible(f"tokens of {value.name} do not stand behind their examples")

    def _copies(self, node: fx.Node, rank: int) -> int:
        """c, where axis 0 of the user counts c rows of each example."""
        if node not in self.by_example:
            raise Impossible("its first axis does not count examples")
        value = node.meta["val"]
        size = size_key(value.shape[0]) if isinstance(value, torch.Tensor) and value.dim() == rank else self.batch
        return _ratio(size, self.batch) or 1


def _ratio(size: object, batch: object) -> int | None:
    """c where size = c·batch."""
    quotient = size / batch  # type: ignore[operator]  # numbers and symbols divide
    number = getattr(quotient, "is_Integer", isinstance(quotient, int))
    return int(quotient) if number else None
