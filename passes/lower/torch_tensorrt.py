"""Lowering to torch-tensorrt: a hardened graph becomes a program of torch's operators over bounded sizes.

    graph ─forms in ATen─▶ torch's operators, select_tokens, routed_linear ─export, sizes bounded─▶ program

The two operators that stay have sizes that only data tell, which ATen cannot say; they have converters in
`runtime/tensorrt/torch_tensorrt_converters.py`. Budgets are fixed, as in every engine.

In 16 bits the products are cast, see `half_products.py`; torch-tensorrt's own autocast casts indices too.

Refused: graphs that break on the sizes asked for.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx

from ...runtime.tensorrt.axes import AxisRanges
from ..graph.signature import Signature
from .aten_forms import in_aten
from .dynamic_export import export_program
from .half_products import half_products
from .onnx_precision import Precision
from .shared_axes import state_shared_axes

_HALVES: Mapping[Precision, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16}


def lower_to_torch_tensorrt(
    graph_module: fx.GraphModule,
    signature: Signature,
    example: Mapping[str, Tensor],
    ranges: AxisRanges,
    precision: Precision = "fp32",
) -> torch.export.ExportedProgram:
    """The program of `graph_module`, which takes its inputs positionally in the order of `signature`.

    Args:
        example: one batch of at least two examples, within `ranges`; ranges: of every axis of `signature`.
        precision: of products.

    Raises:
        CaptureError: a size that is fixed, a branch on data, or sizes that the graph does not take.
    """
    batch = list(example.values())
    symbols = {
        name: torch.export.Dim(name, min=size.least, max=size.most) if size.least < size.most else size.most
        for name, size in ranges.items()
    }
    axes = [
        {place: symbols[axis.symbol] for place, axis in enumerate(spec.axes) if axis.size is None}
        for spec in signature.inputs
    ]
    program = export_program(in_aten(state_shared_axes(graph_module, batch)), batch, axes)
    if precision == "fp32":
        return program
    return export_program(half_products(program.module(False), _HALVES[precision]), batch, axes)


def example_within(example: Mapping[str, Tensor], signature: Signature, ranges: AxisRanges) -> dict[str, Tensor]:
    """The example, repeated or cut to sizes of `ranges`: at least two where an axis varies.

    Args:
        example: one batch, every entry of an input alike along an open axis.
    """
    fitted = dict(example)
    for spec in signature.inputs:
        for place, axis in enumerate(spec.axes):
            if axis.size is None:
                size = ranges[axis.symbol]
                wanted = min(max(fitted[spec.name].shape[place], size.least), size.most)
                fitted[spec.name] = fitted[spec.name].narrow(place, 0, 1).repeat_interleave(wanted, place)
    return fitted
