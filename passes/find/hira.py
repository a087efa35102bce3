"""HiRA sites: where a graph adds (W0 ⊙ B A) x to the linear layer W0 x (Huang et al. 2025).

    x ──▶ linear(W0) ────────────────────────────────────▶ add ──▶ y          HiraSite
    └──▶ [dropout] ─▶ linear(W0 ⊙ B A) ─▶ [mul(s)] ─▶ [mul(factor)]* ──┘
         W0 ⊙ B A = mul(W0, mm(B, A))

Recognised by structure: the layer's own weight is multiplied elementwise by a product of two matrices, in gatefx's
spelling or in PEFT's. A weight stored (d_in, d_out), as Conv1D does, is transposed first.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from ..graph.edit import tensor_value
from .adapters import plain_path
from .updates import before_dropout, has_bias, scaled_update, sum_with_base, update_factors

aten = torch.ops.aten
_TRANSPOSES = (aten.t.default, aten.permute.default, aten.transpose.int, aten.numpy_T.default)
_MATRIX = 2


@dataclass(frozen=True)
class HiraSite:
    """One linear layer with a Hadamard update y = base + scale·(W0 ⊙ B A) x.

    Attributes:
        name, path: the layer's module path.
        x: state entering the layer, (B, …, d_in); branch_input: x, or x after the adapter's dropout.
        base: the layer's own output, (B, …, d_out); weight: get_attr of W0; transposed: W0 is stored (d_in, d_out).
        product: W0 ⊙ B A, (d_out, d_in); up: (W0 ⊙ B A) x; scaled: s·up (or up); add: y.
        factors: the multiplications of the scaled update by gates, innermost first.
        hira_a: get_attr of A (r, d_in); hira_b: get_attr of B (d_out, r); scale: s, a number or a get_attr node.
    """

    name: str
    path: str
    x: fx.Node
    branch_input: fx.Node
    base: fx.Node
    weight: fx.Node
    transposed: bool
    product: fx.Node
    up: fx.Node
    scaled: fx.Node
    add: fx.Node
    hira_a: fx.Node
    hira_b: fx.Node
    scale: float | fx.Node
    rank: int
    d_in: int
    d_out: int
    factors: tuple[fx.Node, ...] = ()

    @property
    def update(self) -> fx.Node:
        """What is added to the layer's output: the scaled update times every factor."""
        return self.factors[-1] if self.factors else self.scaled


def find_hira_sites(graph_module: fx.GraphModule) -> tuple[HiraSite, ...]:
    """All HiRA sites in graph order."""
    found = (_match(node, graph_module) for node in graph_module.graph.nodes if node.target is aten.linear.default)
    return tuple(site for site in found if site is not None)


def _match(up: fx.Node, graph_module: fx.GraphModule) -> HiraSite | None:
    """Read a site from the linear that applies its update; None where the node is none."""
    product = up.args[1]
    if not isinstance(product, fx.Node) or product.target is not aten.mul.Tensor or has_bias(up):
        return None
    weight, pair = _stored(product.args[0]), _low_rank(product.args[1])
    if weight is None or pair is None:
        return None
    hira_a, hira_b = pair
    d_out, d_in = (int(size) for size in tensor_value(product).shape)
    branch_input = up.all_input_nodes[0]
    x = before_dropout(branch_input, graph_module)
    scaled, scale = scaled_update(up)
    factors = update_factors(scaled, graph_module)
    joined = sum_with_base(factors[-1] if factors else scaled, x, d_out)
    if isinstance(joined, str) or joined[2].target != weight.target:
        return None
    total, base, _ = joined
    path, rank = plain_path(str(weight.target)), int(tensor_value(hira_a).shape[0])
    return HiraSite(
        path, path, x, branch_input, base, weight, product.args[0] is not weight, product, up, scaled, total,
        hira_a, hira_b, scale, rank, d_in, d_out, factors,
    )  # fmt: skip


def _low_rank(node: object) -> tuple[fx.Node, fx.Node] | None:
    """(A (r, d_in), B (d_out, r)) where a node is B A, or the transpose of Aᵀ Bᵀ as PEFT spells it."""
    flipped = _transposed(node)
    inner = flipped if flipped is not None else node
    if not isinstance(inner, fx.Node) or inner.target not in (aten.mm.default, aten.matmul.default):
        return None
    left, right = inner.args[0], inner.args[1]
    if flipped is not None:
        left, right = _transposed(right), _transposed(left)
    if not _is_matrix(left) or not _is_matrix(right):
        return None
    return right, left  # type: ignore[return-value]  # both are nodes: `_is_matrix`


def _stored(node: object) -> fx.Node | None:
    """The weight that a node reads, directly or transposed; a copy without gradient reads it too (PEFT's Conv1D)."""
    if isinstance(node, fx.Node) and node.target is aten.detach.default:
        node = node.args[0]
    inner = _transposed(node)
    found = inner if inner is not None else node
    return found if isinstance(found, fx.Node) and _is_matrix(found) else None


def _transposed(node: object) -> fx.Node | None:
    """The node whose transpose this is."""
    if not isinstance(node, fx.Node) or node.target not in _TRANSPOSES:
        return None
    inner = node.args[0]
    return inner if isinstance(inner, fx.Node) and tensor_value(inner).dim() == _MATRIX else None


def _is_matrix(node: object) -> bool:
    return isinstance(node, fx.Node) and node.op == "get_attr" and tensor_value(node).dim() == _MATRIX
