"""What a legal graph is, as one table of rules, and a check that prints the neighbourhood of a break.

Run after every pass in tests and under `verify=True`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import fx, nn

from ...errors import PassError
from ...models.gate_modules import GATE_MODULES
from ...models.regularization import REGULARIZATION_MODULES

_SYMBOLIC = {
    *(getattr(operator, name) for name in ("add", "sub", "mul", "floordiv", "mod", "neg", "getitem", "truediv")),
    *(getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge", "pow")),
    torch.sym_max,
    torch.sym_min,
    torch.sym_not,
    torch.sym_ite,
    torch.sym_float,
    torch.sym_int,
    torch.sym_sum,
}
_ALLOWED_MODULES: tuple[type[nn.Module], ...] = (*GATE_MODULES, *REGULARIZATION_MODULES)


@dataclass(frozen=True)
class Rule:
    """One law of the graph. `broken` returns what is wrong with a node, or None."""

    name: str
    broken: Callable[[fx.Node, fx.GraphModule], str | None]


def check_legality(graph_module: fx.GraphModule) -> None:
    """Check every rule on every node.

    Raises:
        PassError: naming the rule, the node and its neighbours.
    """
    try:
        graph_module.graph.lint()
    except RuntimeError as error:
        raise PassError(f"The graph is not well formed: {error}") from error
    for node in graph_module.graph.nodes:
        for rule in RULES:
            reason = rule.broken(node, graph_module)
            if reason:
                raise PassError(
                    f"The graph breaks the rule {rule.name!r} at node {node.name}: {reason}.",
                    given=_neighbourhood(node),
                    remedy="this is a fault of the pass that ran last; please report it with the pass report",
                )


def _neighbourhood(node: fx.Node) -> str:
    around = [*node.all_input_nodes, node, *node.users]
    return " | ".join(n.format_node() or n.name for n in around)


def _known_op(node: fx.Node, _: fx.GraphModule) -> str | None:
    known = ("placeholder", "get_attr", "call_function", "call_module", "output")
    return None if node.op in known else f"operation {node.op} is not in the dialect"


def _aten_function(node: fx.Node, _: fx.GraphModule) -> str | None:
    if node.op != "call_function" or isinstance(node.target, torch._ops.OpOverload) or node.target in _SYMBOLIC:
        return None
    return f"{node.target} is no ATen or gatefx operator"


def _functional(node: fx.Node, _: fx.GraphModule) -> str | None:
    if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable:
        return f"{node.target} writes to its input"
    return None


def _tensor_exists(node: fx.Node, graph_module: fx.GraphModule) -> str | None:
    if node.op != "get_attr":
        return None
    owner, _, leaf = str(node.target).rpartition(".")
    try:
        value = getattr(graph_module.get_submodule(owner), leaf)
    except AttributeError:
        return f"{node.target} does not exist"
    return None if isinstance(value, torch.Tensor) else f"{node.target} is no tensor"


def _known_module(node: fx.Node, graph_module: fx.GraphModule) -> str | None:
    if node.op != "call_module":
        return None
    try:
        module = graph_module.get_submodule(str(node.target))
    except AttributeError:
        return f"{node.target} does not exist"
    return None if isinstance(module, _ALLOWED_MODULES) else f"{type(module).__name__} is no gate and no dropout"


def _has_value(node: fx.Node, _: fx.GraphModule) -> str | None:
    return None if node.op == "output" or "val" in node.meta else "it carries no symbolic value"


def _has_provenance(node: fx.Node, _: fx.GraphModule) -> str | None:
    return None if node.op == "output" or "module_path" in node.meta else "it does not say which module it came from"


def _named_outputs(node: fx.Node, _: fx.GraphModule) -> str | None:
    if node.op != "output":
        return None
    return None if isinstance(node.args[0], dict) and node.args[0] else "the graph must return named outputs"


def _used(node: fx.Node, _: fx.GraphModule) -> str | None:
    if node.op in ("placeholder", "output") or node.users or node.is_impure():
        return None
    return "nothing uses it"


RULES = (
    Rule("known operation", _known_op),
    Rule("ATen functions only", _aten_function),
    Rule("no in-place operator", _functional),
    Rule("tensors exist", _tensor_exists),
    Rule("modules are gates or dropout", _known_module),
    Rule("symbolic values", _has_value),
    Rule("provenance", _has_provenance),
    Rule("named outputs", _named_outputs),
    Rule("no dead nodes", _used),
)
