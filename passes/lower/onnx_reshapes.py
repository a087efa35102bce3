"""Reshapes to the shape that a tensor has already: nodes that say nothing, and hide what follows from patterns.

    x (B, H, T, D) ─▶ Reshape ─▶ (B, H, T, D)   →   x

Exact: torch names equal sizes by equal names, so two shapes that are known in every axis and equal by name are one.
Attention of transformers ends with such a reshape. Declines shapes with an axis that has no name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir


def drop_idle_reshapes(model: onnx_ir.Model) -> int:
    """Take out in place every reshape that changes no shape; how many there were."""
    idle = [node for node in model.graph if node.op_type == "Reshape" and not node.domain and _idle(node)]
    for node in idle:
        before = node.inputs[0]
        if before is not None:
            node.outputs[0].replace_all_uses_with(before)
            model.graph.remove(node, safe=True)
    return len(idle)


def _idle(node: onnx_ir.Node) -> bool:
    before, after = node.inputs[0], node.outputs[0]
    if before is None or before.shape is None or after.shape is None or after.is_graph_output():
        return False
    sizes = [size if isinstance(size, int) else size.value for size in (*before.shape, *after.shape)]
    return None not in sizes and sizes[: len(before.shape)] == sizes[len(before.shape) :]
