"""What a schedule of cuts costs: FLOPs on the data's lengths, as a share of those without a cut.

    graph with a gate at every possible cut, compacted  ─▶  FLOPs in B, T and K_ℓ, the tokens kept after layer ℓ
    schedule {ℓ: share}                                 ─▶  K_ℓ = share·n; a cut that it leaves out costs nothing

So the predictors of the cuts in use are in the price. n is the length of a batch's longest example, to which compaction
pads the others; T is n too, so that no schedule is paid for dropping padding.

Not priced: tokens that must stay beyond their share (a question's), and shares that rise to whole tokens, which on
short inputs is up to one token a cut; `whole=True` counts those.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import sympy
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from ...errors import PassError
from ...models.families import ATTENTION_MASK
from ...models.hard_token_gate import HardTokenGate
from ..find.layers import Cut
from ..find.selections import SELECT
from ..flops import count_flops
from ..graph.edit import shape_of
from ..graph.signature import signature_of

#: (after layer, share of the original tokens kept), by rising layer.
Keep = tuple[tuple[int, float], ...]
Batches = Sequence[Mapping[str, Tensor]]
Sizes = NDArray[np.float64]

_ROUNDING = 1e-6  # of `token_selection.tokens_of_share`


class ScheduleCost:
    """FLOPs of any schedule over the cuts of one compacted graph.

    Args:
        compacted: with a hard gate at every possible cut; first: the first of these cuts, in the graph before.
        data: batches, whose shapes and masks alone are read.
    """

    def __init__(self, compacted: fx.GraphModule, first: Cut, data: Batches) -> None:
        self._graph = compacted
        self._model = count_flops(compacted)
        self._kept = _kept_symbols(compacted)
        self._counts: dict[frozenset[int], Callable[..., Sizes]] = {}
        self._sizes, self.longest = _lengths(compacted, first, data)
        self._dense = self._flops(())

    def share(self, keep: Keep, *, whole: bool = False) -> float:
        """FLOPs of a schedule over those without a cut; `whole` rounds tokens up as the gates do."""
        return self._flops(keep, whole=whole) / self._dense

    def _flops(self, keep: Keep, *, whole: bool = False) -> float:
        """Of all batches together."""
        shares = dict(keep)
        left = self.longest
        tokens: list[Sizes] = []
        for layer in self._kept:
            if layer in shares:
                wanted = self.longest * shares[layer]
                wanted = np.ceil(wanted * (1 - _ROUNDING)) if whole else wanted
                left = np.minimum(left, np.maximum(wanted, 1.0))
            tokens.append(left)
        counted = self._count(frozenset(shares))(*self._sizes.values(), *tokens)
        return float(np.broadcast_to(counted, self.longest.shape).sum())

    def _count(self, used: frozenset[int]) -> Callable[..., Sizes]:
        """(sizes, tokens kept) → FLOPs batch by batch, of the graph with these cuts alone."""
        if used not in self._counts:
            unread = _unread(self._graph, used)
            by_node = self._model.by_node
            total = sum((by_node[n.name] for n in self._graph.graph.nodes if n.name in by_node and n not in unread), 0)
            arguments = [*self._sizes, *self._kept.values()]
            unknown = sorted(str(symbol) for symbol in sympy.sympify(total).free_symbols - set(arguments))
            if unknown:
                raise PassError(f"The FLOPs of a cut graph depend on {', '.join(unknown)}, which no input says.")
            self._counts[used] = sympy.lambdify(arguments, total, "numpy")
        return self._counts[used]


def _kept_symbols(compacted: fx.GraphModule) -> dict[int, sympy.Symbol]:
    """Layer of each cut → the symbol of the tokens that it keeps, in graph order."""
    found = {}
    for choice in compacted.graph.find_nodes(op="call_function", target=SELECT):
        layer = _layer_of(compacted, choice.all_input_nodes[0].all_input_nodes[0])
        if layer is not None:
            found[layer] = choice.meta["val"][0].shape[1].node.expr
    return found


def _layer_of(graph_module: fx.GraphModule, node: fx.Node) -> int | None:
    """After which layer a node chooses tokens; None where it does not."""
    if node.op != "call_module":
        return None
    module = graph_module.get_submodule(str(node.target))
    return module.layer if isinstance(module, HardTokenGate) else None


def _unread(graph_module: fx.GraphModule, used: frozenset[int]) -> set[fx.Node]:
    """What only gates read that are not used, and these gates."""
    unread: set[fx.Node] = set()
    for node in reversed(graph_module.graph.nodes):
        layer = _layer_of(graph_module, node)
        if layer is not None:
            if layer not in used:
                unread.add(node)
        elif node.users and unread.issuperset(node.users):
            unread.add(node)
    return unread


def _lengths(graph_module: fx.GraphModule, first: Cut, data: Batches) -> tuple[dict[sympy.Symbol, Sizes], Sizes]:
    """(symbol of an input's axis → its size in every batch, n of every batch)."""
    rows = [_sizes(graph_module, batch) for batch in data]
    sizes = {symbol: np.array([row[symbol] for row in rows]) for symbol in rows[0]}
    tokens = shape_of(first.state)[1]
    if not isinstance(tokens, torch.SymInt):
        return sizes, np.full(len(data), float(tokens))
    expression = tokens.node.expr
    longest = np.broadcast_to(sympy.lambdify(list(sizes), expression, "numpy")(*sizes.values()), len(data))
    if first.mask is not None:
        longest = np.array([float(batch[ATTENTION_MASK].sum(1).max()) for batch in data])
    if expression in sizes:
        sizes[expression] = longest
    return sizes, longest


def _sizes(graph_module: fx.GraphModule, batch: Mapping[str, Tensor]) -> dict[sympy.Symbol, float]:
    """The symbols of the inputs' axes, as one batch has them."""
    placeholders = graph_module.graph.find_nodes(op="placeholder")
    tensors = signature_of(graph_module).arrange(batch)
    pairs = [
        (size, number)
        for node, tensor in zip(placeholders, tensors, strict=True)
        for size, number in zip(node.meta["val"].shape, tensor.shape, strict=True)
        if isinstance(size, torch.SymInt)
    ]
    return {size.node.expr: float(number) for size, number in pairs if isinstance(size.node.expr, sympy.Symbol)}
