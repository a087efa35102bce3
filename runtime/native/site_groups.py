"""Layers with adapters that read the same states, in the model that a session of ONNX Runtime is started on.

    x ─▶ gatefx::GatedLinear(W, b, A, B, indices, scale) ─▶ q
    x ─▶ gatefx::GatedLinear(…) ─▶ k                               queries, keys and values, for instance
    x ─▶ gatefx::GatedLinear(…) ─▶ v
        →   x ─▶ gatefx::GatedLinearTriple(W, b, A, B, indices, scale, …) ─▶ q, k, v      two: GatedLinearPair

One pass over x: a task multiplies its tokens with all the weights while they are near. Every site computes what it did,
bit for bit. The file keeps the single nodes, which are what its functions define.

Declines layers of which one needs what another answers, and a fourth one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..ops.domain import DOMAIN
from .native_nodes import replace_by_native

if TYPE_CHECKING:
    import onnx_ir

SITE = "GatedLinear"
GROUPS = {2: "GatedLinearPair", 3: "GatedLinearTriple"}
"""The library's operators, by how many sites they take."""


def group_sites(model: onnx_ir.Model) -> int:
    """Join in place the sites that the library can run together; into how many groups."""
    by_states: dict[onnx_ir.Value, list[onnx_ir.Node]] = {}
    for node in model.graph:
        if node.domain == DOMAIN and node.op_type == SITE and node.inputs[0] is not None:
            by_states.setdefault(node.inputs[0], []).append(node)
    groups = [sites[: max(GROUPS)] for sites in by_states.values()]
    return sum(_joined(model, sites) for sites in groups if len(sites) in GROUPS)


def _joined(model: onnx_ir.Model, sites: list[onnx_ir.Node]) -> bool:
    # Seen anew for each group: one that was joined may tie the sites of the next one together.
    if not _independent(sites, {node: place for place, node in enumerate(model.graph)}):
        return False
    inputs = [sites[0].inputs[0], *(value for site in sites for value in site.inputs[1:])]
    replace_by_native(model, sites, GROUPS[len(sites)], inputs, answers=[site.outputs[0] for site in sites])
    model.graph.sort()  # the group stands where its first site did, and what the others need may be made later
    return True


def _independent(sites: list[onnx_ir.Node], order: dict[onnx_ir.Node, int]) -> bool:
    """Whether none of them needs what another answers."""
    first, wanted = order[sites[0]], set(sites)
    seen: set[onnx_ir.Node] = set()
    waiting = [value.producer() for site in sites for value in site.inputs if value is not None]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen or order.get(node, first) < first:
            continue  # what stands before all of them needs none
        if node in wanted:
            return False
        seen.add(node)
        waiting.extend(value.producer() for value in node.inputs if value is not None)
    return True
