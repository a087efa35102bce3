"""Nodes of the native library, put in place of others in the model that a session of ONNX Runtime is started on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ..ops.domain import DOMAIN, VERSION

if TYPE_CHECKING:
    import onnx_ir


def replace_by_native(
    model: onnx_ir.Model,
    nodes: Sequence[onnx_ir.Node],
    operator: str,
    inputs: Iterable[onnx_ir.Value | None],
    *,
    answers: Sequence[onnx_ir.Value],
    attributes: Iterable[onnx_ir.Attr] = (),
) -> None:
    """Put one node of the library in place of `nodes`, in place.

    Args:
        nodes: the first gives its place, name and metadata.
        answers: values of theirs that are read elsewhere: the outputs of the node, in its order.
    """
    import onnx_ir

    first = nodes[0]
    native = onnx_ir.Node(
        DOMAIN,
        operator,
        inputs,
        attributes,
        num_outputs=len(answers),
        name=first.name,
        metadata_props=dict(first.metadata_props),
    )
    onnx_ir.convenience.replace_nodes_and_values(model.graph, first, nodes, [native], answers, native.outputs)
    model.graph.opset_imports.setdefault(DOMAIN, VERSION)
