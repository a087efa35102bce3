"""A decoder's two graphs as two ONNX models of one folder, over one file of weights.

model.onnx     prefill      model.onnx.data ◀── weights of both
decode.onnx    decode       what the prefill does not have stands in decode.onnx itself
part.onnx      prefill of a part of a prompt, where one is asked for; likewise
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import fx

from ..graph.signature import Signature, example_for, signature_of
from .onnx import MODEL_FILE, lower_to_onnx, save_onnx
from .onnx_names import rename_axes

if TYPE_CHECKING:
    import onnx_ir


def lower_decoder_graph(graph_module: fx.GraphModule, buffers: tuple[str, ...], *, opset: int) -> onnx_ir.Model:
    """The ONNX model of a prefill or a decode.

    Args:
        buffers: names of those that a caller may replace per call, as far as the graph reads them.

    Raises:
        GatefxError: as `lower_to_onnx`.
    """
    signature = signature_of(graph_module)
    read = {str(node.target) for node in graph_module.graph.find_nodes(op="get_attr")}
    overridable = tuple(name for name in buffers if name in read)
    example = example_for(signature)
    device = next(graph_module.parameters()).device
    given = {name: tensor.to(device) for name, tensor in example.items()}
    model = lower_to_onnx(graph_module, given, signature.outputs, opset=opset, overridable=overridable)
    rename_axes(model, _axes(signature))
    return model


def save_decoder(prefill: onnx_ir.Model, others: Mapping[str, onnx_ir.Model], folder: Path) -> None:
    """Write the prefill, and other models by file, with their weights: each weight that it holds too stands there once.

    Args:
        others: file → model.
    """
    import onnx_ir

    save_onnx(prefill, folder)
    stored = onnx_ir.load(folder / MODEL_FILE).graph.initializers
    for file, model in others.items():
        for name, value in model.graph.initializers.items():
            other = stored.get(name)
            if other is not None and _is_stored(other, value):
                value.const_value = other.const_value
        onnx_ir.save(model, folder / file)


def _is_stored(stored: onnx_ir.Value, value: onnx_ir.Value) -> bool:
    """Whether the tensor stands in the file of weights."""
    import onnx_ir

    ours, theirs = value.const_value, stored.const_value
    if not isinstance(theirs, onnx_ir.ExternalTensor) or ours is None or ours.dtype != theirs.dtype:
        return False
    return np.array_equal(ours.numpy(), theirs.numpy())


def _axes(signature: Signature) -> dict[str, tuple[str, ...]]:
    return {spec.name: tuple(str(axis) for axis in spec.axes) for spec in signature.inputs}
