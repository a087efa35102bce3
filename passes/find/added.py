"""Added sites: adapters of any other kind that add an update to a linear layer, found by what trains.

    x ──▶ linear(W0) ──┬────────────────────────────▶ add ──▶ y          AddedSite
    └──▶ M(x, base) ◀──┘ ─▶ [threshold(·, base)]* ─────┘

M is anything that treats each token by itself: DoRA (the difference to the layer's answer, rescaled), AdaLoRA
(A, its diagonal, B), a bottleneck with an activation beside the layer (a parallel adapter). It must read x and the
layer's answer alone, through tensors of which one is an adapter's: named so by PEFT, or trainable beside a frozen W0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx, nn

from ..graph.edit import get_tensor, shape_of, tensor_value
from .adapters import find_sites, named_as_adapter, plain_path
from .hira import find_hira_sites
from .updates import is_threshold, sum_with_base

aten = torch.ops.aten
_POINTWISE = tuple(
    getattr(getattr(aten, name), overload)
    for name, overload in (
        ("add", "Tensor"), ("sub", "Tensor"), ("mul", "Tensor"), ("div", "Tensor"), ("neg", "default"),
        ("gelu", "default"), ("relu", "default"), ("silu", "default"), ("tanh", "default"), ("sigmoid", "default"),
        ("leaky_relu", "default"), ("alias", "default"), ("detach", "default"), ("to", "dtype"),
    )
)  # fmt: skip
_MATRIX = 2


@dataclass(frozen=True)
class AddedSite:
    """One linear layer with an update of another kind, y = base + M(x, base).

    Attributes:
        name, path: the layer's module path.
        x: state entering the layer, (B, …, d_in); base: the layer's own output, (B, …, d_out); add: y.
        scaled: M, (B, …, d_out); factors: thresholds on it, innermost first.
        parameters: names of the adapter's own tensors; rank: the narrowest of their axes that is no single number.
    """

    name: str
    path: str
    x: fx.Node
    base: fx.Node
    scaled: fx.Node
    add: fx.Node
    parameters: tuple[str, ...]
    rank: int
    d_in: int
    d_out: int
    factors: tuple[fx.Node, ...] = ()

    @property
    def update(self) -> fx.Node:
        """What is added to the layer's output."""
        return self.factors[-1] if self.factors else self.scaled


def find_added_sites(graph_module: fx.GraphModule) -> tuple[AddedSite, ...]:
    """All sites of other kinds, in graph order."""
    known = {site.add for site in find_sites(graph_module)[0]} | {site.add for site in find_hira_sites(graph_module)}
    adds = graph_module.graph.find_nodes(op="call_function", target=aten.add.Tensor)
    found = (_match(node, graph_module) for node in adds if node not in known)
    return tuple(site for site in found if site is not None)


def _match(total: fx.Node, graph_module: fx.GraphModule) -> AddedSite | None:
    """Read a site from the sum that joins its update, in either order; None where the node is none."""
    first, second = total.args[:2]
    for base, update in ((first, second), (second, first)):
        if isinstance(base, fx.Node) and isinstance(update, fx.Node) and base.target is aten.linear.default:
            found = _read(total, base, update, graph_module)
            if found is not None:
                return found
    return None


def _read(total: fx.Node, base: fx.Node, update: fx.Node, graph_module: fx.GraphModule) -> AddedSite | None:
    x, d_out = base.all_input_nodes[0], shape_of(base)[-1]
    if not isinstance(shape_of(x)[0], torch.SymInt) or not isinstance(d_out, int):
        return None
    joined = sum_with_base(update, x, d_out)
    if isinstance(joined, str) or shape_of(update) != shape_of(base):
        return None
    scaled, factors = _without_thresholds(update, graph_module)
    weight = str(joined[2].target)
    own = tuple(name for name in _tensors_read(scaled, x, base) if _is_adapter(name, weight, graph_module))
    if not own or set(own) & {str(node.target) for node in base.all_input_nodes[1:]}:
        return None
    path = plain_path(weight)
    sizes = [size for name in own for size in get_tensor(graph_module, name).shape if size > 1]
    d_in = int(tensor_value(x).shape[-1])
    return AddedSite(path, path, x, base, scaled, total, own, min(sizes, default=1), d_in, d_out, factors)


def _without_thresholds(update: fx.Node, graph_module: fx.GraphModule) -> tuple[fx.Node, tuple[fx.Node, ...]]:
    factors: list[fx.Node] = []
    while is_threshold(update, graph_module):
        factors.insert(0, update)
        update = update.all_input_nodes[0]
    return update, tuple(factors)


def _tensors_read(update: fx.Node, x: fx.Node, base: fx.Node) -> tuple[str, ...]:
    """The tensors that an update reads beside x and base; none where it is no token-wise function of those."""
    cone = _cone(update, {x, base})
    depends = {x, base}
    for node in cone:
        if not depends & set(node.all_input_nodes):
            continue
        if not _is_tokenwise(node, depends):
            return ()
        depends.add(node)
    read = tuple(str(node.target) for node in cone if node.op == "get_attr")
    return read if update in depends and all(node.op != "placeholder" for node in cone) else ()


def _cone(update: fx.Node, sources: set[fx.Node]) -> list[fx.Node]:
    """What a node is computed from, down to the sources, operands before what reads them."""
    ordered, pending, seen = list[fx.Node](), [(update, False)], set(sources)
    while pending:
        node, finished = pending.pop()
        if finished:
            ordered.append(node)
        elif node not in seen:
            seen.add(node)
            pending += [(node, True), *((operand, False) for operand in node.all_input_nodes)]
    return ordered


def _is_tokenwise(node: fx.Node, depends: set[fx.Node]) -> bool:
    """Whether each token's row of a node follows from the same token's rows alone; dropout does."""
    if node.op == "call_module":
        return len(node.all_input_nodes) == 1
    if node.target in (aten.linear.default, aten.matmul.default):
        others = node.all_input_nodes[1:]
        return not depends & set(others) and tensor_value(others[0]).dim() == _MATRIX
    return node.target in _POINTWISE


def _is_adapter(name: str, weight: str, graph_module: fx.GraphModule) -> bool:
    """Whether a tensor is an adapter's: a parameter that PEFT names so, or that trains beside a frozen layer."""
    tensor = get_tensor(graph_module, name)
    if not isinstance(tensor, nn.Parameter):
        return False
    node = next(n for n in graph_module.graph.find_nodes(op="get_attr") if n.target == name)
    frozen = not get_tensor(graph_module, weight).requires_grad
    return named_as_adapter(node) or (tensor.requires_grad and frozen)
