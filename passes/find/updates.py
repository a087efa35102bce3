"""How an update of any kind is joined to its layer: scaled, multiplied by gates, added to what the layer answers.

    update ─▶ [mul(s)] ─▶ [mul(factor) | threshold(·, base)]* ─▶ add(base, ·)

A factor is a gate on the whole update, with one number per token, per example or for all. A threshold multiplies the
update itself, since it compares it with what the layer answers.
"""

from __future__ import annotations

import torch
from torch import fx

from ...models.regularization import REGULARIZATION_MODULES
from ...models.update_threshold import HardUpdateThreshold, UpdateThreshold
from ...runtime.ops import schema  # noqa: F401  # defines torch.ops.gatefx.gated_lora
from ..graph.edit import shape_of, tensor_value

aten = torch.ops.aten
_SUMS = (aten.add.Tensor, torch.ops.gatefx.gated_lora.default)
_MATRIX = 2


def matrix_of(linear: fx.Node) -> fx.Node | None:
    """The weight of a linear, where it is a matrix the graph reads."""
    weight = linear.args[1]
    if not isinstance(weight, fx.Node) or weight.op != "get_attr" or tensor_value(weight).dim() != _MATRIX:
        return None
    return weight


def has_bias(linear: fx.Node) -> bool:
    """Whether a linear adds one."""
    return len(linear.args) > _MATRIX and linear.args[_MATRIX] is not None


def before_dropout(node: fx.Node, graph_module: fx.GraphModule) -> fx.Node:
    """The state before the adapter's own dropout. The layer's input dropout also feeds the base and is kept."""
    if node.op != "call_module" or len(node.users) != 1:
        return node
    if isinstance(graph_module.get_submodule(str(node.target)), REGULARIZATION_MODULES):
        return node.all_input_nodes[0]
    return node


def scaled_update(up: fx.Node) -> tuple[fx.Node, float | fx.Node]:
    """(the scaled update, its scale): the update itself and 1 where nothing scales it."""
    user = next(iter(up.users), None)
    if len(up.users) == 1 and user is not None and user.target is aten.mul.Tensor and user.args[0] is up:
        factor = user.args[1]
        if isinstance(factor, (int, float)):
            return user, float(factor)
        if isinstance(factor, fx.Node) and factor.op == "get_attr" and tensor_value(factor).numel() == 1:
            return user, factor
    return up, 1.0


def update_factors(scaled: fx.Node, graph_module: fx.GraphModule) -> tuple[fx.Node, ...]:
    """Gates on the update: mul(update, factor) or threshold(update, base), each read by the next alone."""
    found: list[fx.Node] = []
    node = scaled
    while len(node.users) == 1:
        user = next(iter(node.users))
        factor = user.args[1] if user.target is aten.mul.Tensor and user.args[0] is node else None
        multiplied = isinstance(factor, fx.Node) and _is_update_factor(factor, scaled)
        if not multiplied and not (is_threshold(user, graph_module) and user.args[0] is node):
            break
        found.append(user)
        node = user
    return tuple(found)


def is_threshold(node: fx.Node, graph_module: fx.GraphModule) -> bool:
    """Whether a node is a gate that compares an update with what its layer answers."""
    if node.op != "call_module":
        return False
    return isinstance(graph_module.get_submodule(str(node.target)), (UpdateThreshold, HardUpdateThreshold))


def _is_update_factor(factor: fx.Node, scaled: fx.Node) -> bool:
    """Whether a tensor has one number per token, per example or for all: (B, …, 1) or ()."""
    shape, update = shape_of(factor), shape_of(scaled)
    return not shape or (len(shape) == len(update) and shape[-1] == 1)


def sum_with_base(scaled: fx.Node, x: fx.Node, d_out: int) -> tuple[fx.Node, fx.Node, fx.Node] | str:
    """(the add that joins the update, the layer's output, the layer's weight); a reason where none does."""
    if len(scaled.users) != 1:
        return "its update is read in several places, so gating it would change more than one layer"
    total = next(iter(scaled.users))
    if total.target is not aten.add.Tensor:
        return f"its update is not added to a layer (it goes to {total.target}); DoRA and the like renormalise it"
    base = next((arg for arg in total.args if isinstance(arg, fx.Node) and arg is not scaled), None)
    if base is None or total.kwargs or shape_of(base)[-1] != d_out:
        return "its update is added to something of another shape"
    weight = _layer_weight(base, x)
    return (total, base, weight) if weight is not None else "the layer it adds to reads another input"


def _layer_weight(base: fx.Node, x: fx.Node) -> fx.Node | None:
    """The weight of the linear over x behind `base`, looking through other adapters that were already added to it."""
    while base.target in _SUMS and isinstance(base.args[0], fx.Node):
        base = base.args[0]
    if base.target is aten.linear.default:
        return matrix_of(base) if base.args[0] is x else None
    inner = base.args[0] if base.target in (aten.view.default, aten.reshape.default) else None
    if not isinstance(inner, fx.Node) or inner.target is not aten.addmm.default:
        return None
    flat, weight = inner.args[1], inner.args[2]
    reads_x = isinstance(flat, fx.Node) and flat.args[0] is x
    return weight if reads_x and isinstance(weight, fx.Node) and weight.op == "get_attr" else None


def leads_with_batch(node: fx.Node) -> bool:
    """Whether a value's first axis is the batch, and not a constant or the batch's tokens in one row (B·T)."""
    first = shape_of(node)[0]
    return isinstance(first, torch.SymInt) and bool(first.node.expr.is_Symbol)
