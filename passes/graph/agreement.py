"""Whether a graph captured in training mode is the model in eval mode too.

Dropout becomes a module that follows eval(). Whatever else a model does only while training (stochastic depth,
channel dropout, a branch on self.training) stands in the graph for good, which only running both shows.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn

_CLOSE = {torch.float64: 1e-7, torch.float32: 1e-3}  # of the largest magnitude; what training adds is far larger
_CLOSE_BELOW = 2e-2  # half precision


@torch.no_grad()
def differs_in_eval(model: nn.Module, graph_module: fx.GraphModule, example: Mapping[str, Tensor]) -> str | None:
    """How `graph_module` and `model`, a module answering by name, differ in eval mode; None where they agree.

    Both are left in eval mode, the random state as it was.
    """
    draws = next((node for node in graph_module.graph.nodes if _is_random(node)), None)
    if draws is not None:
        return f"{draws.target} draws random numbers"
    model.eval()
    graph_module.eval()
    with torch.random.fork_rng(devices=[]):
        wanted = model(*example.values())
        answered = graph_module(*example.values())
    for name, value in wanted.items():
        gap, size = _gap(value, answered[name]), _size(value)
        if not gap <= _CLOSE.get(value.dtype, _CLOSE_BELOW) * max(size, 1e-6):
            return f"{name} differs by {gap:.2g}"
    return None


def _is_random(node: fx.Node) -> bool:
    # Attention is tagged as drawing, but what is left of it here has no dropout: that became a module.
    if node.target is torch.ops.aten.scaled_dot_product_attention.default:
        return False
    return isinstance(node.target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags


def _gap(wanted: Tensor, answered: Tensor) -> float:
    if wanted.shape != answered.shape:
        return float("inf")
    if wanted.numel() == 0:
        return 0.0
    apart = (wanted.double() - answered.double()).abs()
    # Equal infinities, and not-a-number on both sides, are no difference.
    same = (wanted == answered) | (wanted.isnan() & answered.isnan())
    return float(apart.masked_fill(same, 0.0).max())


def _size(value: Tensor) -> float:
    finite = value.double().masked_fill(~value.isfinite(), 0.0)
    return float(finite.abs().max()) if value.numel() else 0.0
