"""What a graph computes, counted: FLOPs as an expression in its own sizes.

    count_flops(graph).at(batch=8, sequence=256)                      a captured graph
    count_flops(compacted).at(batch=8, sequence=256, kept_1=128)      after token compaction: kept tokens at each cut

Matrix products, attention and convolutions are counted (2 FLOPs a multiply-add), by torch's own formulas where it has
them. Element-wise work is not: it is memory traffic, and follows the same sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from ..errors import InputError
from ..models.regularization import AttentionDropout
from ..models.token_scores import LayerShift
from .graph.signature import signature_of

Size = int | torch.SymInt
Formula = Callable[[tuple[Any, ...], Tensor], Size]


@dataclass(frozen=True)
class FlopModel:
    """FLOPs of one forward.

    Attributes:
        by_node: node name → expression in `sizes`, for nodes that compute something.
        sizes: symbol → the name people use: the inputs' axes, then kept_1, kept_2, … in the order of cuts.
    """

    by_node: Mapping[str, sympy.Expr]
    sizes: Mapping[sympy.Symbol, str]

    @property
    def total(self) -> sympy.Expr:
        """All nodes together, in named symbols."""
        return sum(self.by_node.values(), sympy.Integer(0)).xreplace(
            {symbol: sympy.Symbol(name, positive=True) for symbol, name in self.sizes.items()}
        )

    def at(self, sizes: Mapping[str, float]) -> float:
        """FLOPs at given sizes.

        Raises:
            InputError: a size that the graph has is not given.
        """
        return evaluate(self.total, sizes)


def evaluate(expression: sympy.Expr, sizes: Mapping[str, float]) -> float:
    """A count at given sizes by name.

    Raises:
        InputError: a size is missing.
    """
    missing = sorted(str(symbol) for symbol in expression.free_symbols if str(symbol) not in sizes)
    if missing:
        raise InputError(
            "The count depends on sizes that were not given.", given=", ".join(sizes), expected=", ".join(missing)
        )
    return float(expression.subs({symbol: sizes[str(symbol)] for symbol in expression.free_symbols}))


def count_flops(graph_module: fx.GraphModule) -> FlopModel:
    """Count every product in a graph."""
    names = _input_names(graph_module)
    by_node: dict[str, sympy.Expr] = {}
    for node in graph_module.graph.nodes:
        flops = _flops(graph_module, node)
        if flops is None:
            continue
        by_node[node.name] = flops
        # Sizes that no input has are counts of kept tokens, in the order in which the graph makes them.
        for symbol in sorted(flops.free_symbols - names.keys(), key=str):
            names[symbol] = f"kept_{sum(name.startswith('kept_') for name in names.values()) + 1}"
    return FlopModel(by_node, names)


def flops_at_shares(
    graph_module: fx.GraphModule, cuts: Iterable[tuple[fx.Node, float]], sizes: Mapping[str, float], axis: str
) -> float:
    """FLOPs of a graph that is not compacted yet, if what follows each cut ran on a share of the tokens.

    Args:
        cuts: (state at the cut, share kept), in order; sizes: by name; axis: the name of the token axis.
    """
    model = count_flops(graph_module)
    share: dict[fx.Node, float] = {}
    stops = dict(cuts)
    total = 0.0
    for node in graph_module.graph.nodes:
        reached = [share[source] for source in node.all_input_nodes if source in share]
        if reached or node in stops:
            share[node] = min([*reached, *([stops[node]] if node in stops else [])])
        if node.name in model.by_node:
            named = model.by_node[node.name].xreplace(
                {symbol: sympy.Symbol(name, positive=True) for symbol, name in model.sizes.items()}
            )
            kept = 1.0 if node in stops and not reached else min(reached, default=1.0)
            total += evaluate(named, {**sizes, axis: sizes[axis] * kept})
    return total


def _input_names(graph_module: fx.GraphModule) -> dict[sympy.Symbol, str]:
    """Symbols of the inputs' sizes → their names in the signature."""
    names: dict[sympy.Symbol, str] = {}
    placeholders = graph_module.graph.find_nodes(op="placeholder")
    for node, spec in zip(placeholders, signature_of(graph_module).inputs, strict=True):
        for size, axis in zip(node.meta["val"].shape, spec.axes, strict=True):
            if axis.size is None and isinstance(size, torch.SymInt):
                expression = size.node.expr
                if isinstance(expression, sympy.Symbol):
                    names.setdefault(expression, axis.symbol)
    return names


def _flops(graph_module: fx.GraphModule, node: fx.Node) -> sympy.Expr | None:
    """The expression of one node; None where it computes no product."""
    value = node.meta.get("val")
    if node.op == "call_module":
        return _expression(_module_flops(graph_module.get_submodule(str(node.target)), node))
    if node.op != "call_function" or not isinstance(value, Tensor):
        return None
    formula = _FORMULAS.get(str(node.target))
    values = fx.map_arg((node.args, node.kwargs), lambda argument: argument.meta["val"])
    if formula is not None:
        return _expression(formula(values[0], value))
    packet = getattr(node.target, "overloadpacket", None)
    if packet in flop_registry:
        return _expression(flop_registry[packet](*values[0], **values[1], out_val=value))
    return None


def _expression(flops: Size) -> sympy.Expr | None:
    if isinstance(flops, torch.SymInt):
        return flops.node.expr
    return sympy.Integer(flops) if flops else None


def _rows(value: Tensor) -> Size:
    """How many vectors a value holds: (…, d) → the product of all axes but the last."""
    rows: Size = 1
    for size in value.shape[:-1]:
        rows = rows * size
    return rows


def _linear(args: tuple[Any, ...], value: Tensor) -> Size:
    d_out, d_in = args[1].shape
    flops: Size = 2 * _rows(value) * d_out * d_in
    return flops


def _matmul(args: tuple[Any, ...], value: Tensor) -> Size:
    flops: Size = 2 * _rows(value) * value.shape[-1] * args[0].shape[-1]
    return flops


def _attention(args: tuple[Any, ...], value: Tensor) -> Size:  # noqa: ARG001  # a formula's signature
    flops: Size = sdpa_flop_count(args[0].shape, args[1].shape, args[2].shape)  # type: ignore[no-untyped-call]  # torch's
    return flops


def _skipping(args: tuple[Any, ...], value: Tensor) -> Size:
    """token_gated_lora(base, x, lora_a, lora_b, …), had every token taken the update."""
    (rank, d_in), (d_out, _) = args[2].shape, args[3].shape
    flops: Size = 2 * _rows(value) * rank * (d_in + d_out)
    return flops


def _module_flops(module: nn.Module, node: fx.Node) -> Size:
    """Attention in training, norms of shifts, or the linear layers of a gate, each run once per row of its input."""
    inputs = [argument.meta["val"] for argument in node.args if isinstance(argument, fx.Node)]
    if isinstance(module, AttentionDropout):
        return _attention(tuple(inputs), inputs[0])
    if isinstance(module, LayerShift):
        return _shift(module, inputs)
    linears = [part for part in module.modules() if isinstance(part, nn.Linear)]
    if not linears:
        return 0
    return 2 * _rows(inputs[0]) * sum(part.in_features * part.out_features for part in linears)


def _shift(module: LayerShift, inputs: list[Tensor]) -> Size:
    """uᵀ(BᵀB)u site by site: BᵀB once, then r² a token."""
    flops: Size = 0
    given = list(inputs)
    for count in module.factors:
        u, lora_b, *_ = given[: 2 + count]
        del given[: 2 + count]
        flops = flops + 2 * (_rows(u) + lora_b.shape[0]) * u.shape[-1] ** 2
    return flops


#: By the operator's name, which needs no import of the operators that a graph does not hold.
_FORMULAS: Mapping[str, Formula] = {
    "aten.linear.default": _linear,
    "aten.matmul.default": _matmul,
    "aten.scaled_dot_product_attention.default": _attention,
    "gatefx.routed_linear.default": _linear,
    "gatefx.token_gated_lora.default": _skipping,
}
