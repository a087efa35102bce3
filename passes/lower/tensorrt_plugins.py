"""Nodes of a lowered graph that TensorRT's plugins answer: kept whole, named after their plugin, their kernels listed.

    x ─▶ gatefx::GatedLinear ─▶ y      →     x ─▶ MatMul ─▶ Add ─▶ gatefx::GatedLora {plugin_namespace} ─▶ y

Everything else is inlined. The attribute, and not the parser's flag for overriding operators, says what is a plugin:
the flag would hand every standard operator with a plugin of its name to that plugin, as ScatterElements has one. Each
node keeps its body as a local function, which a runtime without plugins inlines.

Refused: graphs without such a node; layers whose sizes are not written in the graph; ranks above the kernels' widest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ...errors import CaptureError
from ...runtime.ops.domain import DOMAIN
from ...runtime.ops.ptx import Element
from ...runtime.tensorrt.plugin_files import MOST_RANK, OPERATORS, Needed

if TYPE_CHECKING:
    import onnx_ir

_NAMESPACE = "plugin_namespace"
"""The attribute by which TensorRT's parser looks for a node's plugin."""

_A, _B, _WEIGHT = 2, 3, 1
"""Inputs whose sizes say those of the layer: A (r, d_in) and B (d_out, r) of a LoRA, or a weight (d_out, d_in)."""


def inline_all_but_plugins(model: onnx_ir.Model) -> None:
    """Inline, in place, every local function that no plugin answers, and name the nodes of the others.

    Raises:
        CaptureError: no node is left for a plugin.
    """
    import onnx_ir
    from onnx_ir.passes import common

    common.InlinePass(criteria=lambda function: function.name not in OPERATORS)(model)
    nodes = list(_plugin_nodes(model))
    if not nodes:
        raise CaptureError(
            "The graph has no operator that gatefx has a TensorRT plugin for.",
            given="operators of standard ONNX only",
            expected=f"one of {', '.join(OPERATORS)}",
            remedy="export without plugins; static gates and dense forms need none",
        )
    for node in nodes:
        node.attributes[_NAMESPACE] = onnx_ir.AttrString(_NAMESPACE, DOMAIN)
    for function in model.functions.values():
        # A node may carry only the attributes that its function declares.
        function.attributes[_NAMESPACE] = onnx_ir.AttrString(_NAMESPACE, DOMAIN)


def kernels_needed(model: onnx_ir.Model, element: Element) -> Sequence[Needed]:
    """The kernels that the nodes call, once each.

    Raises:
        CaptureError: a layer of unknown sizes, or of a rank that no kernel takes.
    """
    calls = Counter((node.op_type, _sizes(node)) for node in _plugin_nodes(model))
    return [Needed(operator, element, *sizes, nodes) for (operator, sizes), nodes in sorted(calls.items())]


def _plugin_nodes(model: onnx_ir.Model) -> Iterator[onnx_ir.Node]:
    return (node for node in model.graph if node.domain == DOMAIN and node.op_type in OPERATORS)


def _sizes(node: onnx_ir.Node) -> tuple[int, int, int]:
    """d_in, d_out, rank."""
    if node.op_type == "RoutedRows":
        d_out, d_in = _fixed(node, _WEIGHT)
        return d_in, d_out, 0
    (rank, d_in), (d_out, _) = _fixed(node, _A), _fixed(node, _B)
    if rank > MOST_RANK:
        raise CaptureError(
            f"No kernel of {node.op_type} takes this rank.",
            given=f"{node.name}: rank {rank}",
            expected=f"at most {MOST_RANK}",
            remedy="export without plugins",
        )
    return d_in, d_out, rank


def _fixed(node: onnx_ir.Node, place: int) -> tuple[int, int]:
    """The two sizes of an input that is a matrix of known sizes."""
    value = node.inputs[place]
    shape = () if value is None or value.shape is None else tuple(value.shape)
    if len(shape) != 2 or not all(isinstance(size, int) for size in shape):  # noqa: PLR2004
        raise CaptureError(
            f"The sizes of a layer's weights are not written in the graph, and a kernel of {node.op_type} needs them.",
            given=f"{node.name}: input {place} of shape {shape}",
            expected="a matrix of fixed sizes",
            remedy="export without plugins",
        )
    return shape
