"""Regions and in-place operators of an exported graph → plain, functional nodes.

    wrap_with_set_grad_enabled(False, f, x)      →      the nodes of f over detach(x)
    aten.add_(y, z); … y …                       →      y1 = aten.add(y, z); … y1 …

Sound: a region computes what its nodes compute, and detached inputs are all that "no gradient" means where every
tensor enters as an input. An operator may write out of place where nobody else sees the tensor that it wrote to;
where somebody might (a view that is read elsewhere, a weight, an input), the graph is refused.
"""

from __future__ import annotations

import operator

import torch
from torch import Tensor, fx, nn

from ...errors import CaptureError

aten = torch.ops.aten
_OUT_OF_PLACE = "write the operation out of place in the module named above, e.g. x = x.masked_fill(m, v) for x[m] = v"
_STATISTICS = (
    "replace batch statistics (BatchNorm) by LayerNorm, and counters by inputs: a graph only reads its buffers"
)


def inline_regions(source: fx.GraphModule) -> None:
    """Replace every set-grad region of an unlifted exported graph by the nodes it holds.

    Raises:
        CaptureError: any other region (torch.cond, autocast, checkpointing), or a gradient switched on inside one.
    """
    for node in list(source.graph.nodes):
        if node.op == "call_function" and isinstance(node.target, torch._ops.HigherOrderOperator):
            _inline(source, node)
    source.graph.eliminate_dead_code()


def _inline(source: fx.GraphModule, region: fx.Node) -> None:
    if region.target is not torch.ops.higher_order.wrap_with_set_grad_enabled:
        raise _refusal(f"holds the region {region.target}", region)
    enabled, body, *inputs = region.args
    module = getattr(source, str(body.target)) if isinstance(body, fx.Node) else None
    if not isinstance(module, fx.GraphModule) or any(
        isinstance(n.target, torch._ops.HigherOrderOperator) for n in module.graph.nodes
    ):
        raise _refusal("nests one gradient region in another", region)
    graph = source.graph
    with graph.inserting_before(region):
        given = [value if enabled else _without_gradient(source, value) for value in inputs]
        holes = module.graph.find_nodes(op="placeholder")
        values = dict(zip(holes, given, strict=True))
        outputs = graph.graph_copy(module.graph, values)
    answers = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
    for user in list(region.users):
        index = user.args[1] if user.target is operator.getitem else None
        if not isinstance(index, int):
            raise _refusal("passes a whole region on", region)
        user.replace_all_uses_with(answers[index])
        graph.erase_node(user)
    graph.erase_node(region)


def _without_gradient(source: fx.GraphModule, value: object) -> object:
    """The value as a region without gradients reads it; integers and buffers have none to lose."""
    if not isinstance(value, fx.Node) or not isinstance(value.meta.get("val"), Tensor):
        return value
    if not value.meta["val"].is_floating_point():
        return value
    if value.op == "get_attr" and not isinstance(_attribute(source, str(value.target)), nn.Parameter):
        return value
    detached = source.graph.call_function(aten.detach.default, (value,))
    detached.meta = dict(value.meta)
    return detached


def _attribute(source: fx.GraphModule, name: str) -> object:
    owner, _, leaf = name.rpartition(".")
    return getattr(source.get_submodule(owner), leaf)


def out_of_place(node: fx.Node) -> torch._ops.OpOverload | None:
    """The operator that computes what an in-place one writes; None for operators that write nothing.

    Raises:
        CaptureError: there is none, or somebody else sees the tensor that is written.
    """
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or not target._schema.is_mutable:
        return None
    written = node.args[0]
    if isinstance(written, fx.Node) and written.op == "get_attr":
        raise _refusal(f"writes to {str(written.target).removeprefix('model.')} while it runs", node, _STATISTICS)
    packet = str(target._schema.name).removeprefix("aten::")
    pure = getattr(aten, packet.removesuffix("_"), None) if packet.endswith("_") else None
    if pure is None or target._overloadname not in pure.overloads():
        raise _refusal(f"calls {target}, which has no form that writes nothing", node)
    # detach_ writes no values, so that nobody who sees the tensor reads another.
    unseen = target is aten.detach_.default or (isinstance(written, fx.Node) and not _is_seen_elsewhere(written, node))
    if not unseen:
        raise _refusal(f"calls {target} on a tensor that is read elsewhere too", node)
    overload: torch._ops.OpOverload = getattr(pure, target._overloadname)
    return overload


def _is_seen_elsewhere(written: fx.Node, writer: fx.Node) -> bool:
    """Whether an input or a view of it sees what `writer` writes; later readers of `written` itself are fine."""
    if written.op != "call_function":
        return True
    if any(user is not writer and _is_view(user) for user in written.users):
        return True
    if not _is_view(written):
        return False
    base = written.args[0]
    return not isinstance(base, fx.Node) or len(base.users) > 1 or _is_seen_elsewhere(base, written)


def _is_view(node: fx.Node) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    return any(
        answer.alias_info is not None and not answer.alias_info.is_write for answer in node.target._schema.returns
    )


def _refusal(what: str, node: fx.Node, remedy: str = _OUT_OF_PLACE) -> CaptureError:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path, kind = (str(part) for part in stack[-1]) if stack else ("", "the model")
    name = kind.rpartition(".")[2]
    where = path.removeprefix("model").strip(".")
    return CaptureError(
        f"{name}{f' at {where}' if where else ''} {what}.",
        given=node.format_node() or node.name,
        expected="a forward that computes new tensors and has no control flow on tensor values",
        remedy=remedy,
    )
