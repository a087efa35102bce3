"""Lowering to TensorRT: a hardened graph becomes an ONNX model that TensorRT's parser takes, and its profile of sizes.

    graph ─lower_to_onnx─▶ ONNX with functions ─inline─▶ standard operators ─cast─▶ fp32 | fp16 | bf16 ─rules─▶ out

Attention stays in parts, which TensorRT fuses by pattern: as one node (opset 23) its builder takes only the shapes that
a fused kernel has. Budgets are fixed: TensorRT reads no replaceable initializer. With plugins, the nodes that have one
stay as they are.

Refused: graphs that break a rule of `runtime/tensorrt/lint.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor, fx

from ...errors import CaptureError, InputError
from ...runtime.tensorrt.axes import AxisRange, AxisRanges
from ...runtime.tensorrt.build_files import Profile
from ...runtime.tensorrt.lint import lint
from ..graph.signature import Axis, Signature
from .onnx import lower_to_onnx
from .onnx_names import rename_axes
from .onnx_precision import Precision, cast_model
from .tensorrt_plugins import inline_all_but_plugins

if TYPE_CHECKING:
    import onnx_ir

TENSORRT_OPSET = 20
TENSORRT_OPSETS = (18, 22)

_BATCH = AxisRange(1, 8, 32)
_LENGTH = AxisRange(1, 128, 512)
"""Sizes where nothing else is said."""


def lower_to_tensorrt(
    graph_module: fx.GraphModule,
    signature: Signature,
    example: Mapping[str, Tensor],
    ranges: AxisRanges,
    *,
    opset: int,
    precision: Precision,
    plugins: bool = False,
) -> onnx_ir.Model:
    """The ONNX model of `graph_module` as TensorRT takes it.

    Args:
        example: one batch of at least two, see `lower_to_onnx`; ranges: of every axis of `signature`.
        plugins: keep the operators that gatefx has a plugin for, see `tensorrt_plugins.py`.

    Raises:
        CaptureError: no ONNX form, a graph that breaks TensorRT's rules, or one that cannot be cast; with `plugins`,
            one that has no place for any.
        InputError: another opset.
    """
    if not isinstance(opset, int) or not TENSORRT_OPSETS[0] <= opset <= TENSORRT_OPSETS[1]:
        raise InputError(
            "TensorRT is given standard ONNX of some versions only: from 23 on attention is one node, which needs a "
            "fused kernel for its very shape.",
            given=f"opset={opset!r}",
            expected=f"{TENSORRT_OPSETS[0]} to {TENSORRT_OPSETS[1]}",
        )
    from onnx_ir.passes import common

    model = lower_to_onnx(graph_module, example, signature.outputs, opset=opset)
    rename_axes(model, {spec.name: tuple(map(str, spec.axes)) for spec in signature.inputs})
    if plugins:
        inline_all_but_plugins(model)
    else:
        common.InlinePass()(model)
    cast_model(model, precision)
    _check_rules(model, ranges)
    return model


def _check_rules(model: onnx_ir.Model, ranges: AxisRanges) -> None:
    import onnx_ir

    if found := lint(onnx_ir.to_proto(model), ranges):
        raise CaptureError(
            "The graph breaks rules of TensorRT.",
            given="\n".join(map(str, found)),
            expected="operators that TensorRT builds and answers rightly",
            remedy='Replace the operators named, or export with backend="onnxruntime".',
        )


def ranges_of(signature: Signature, sizes: Mapping[str, Sequence[int]] | None) -> AxisRanges:
    """The sizes to build for, by axis: those asked for, the usual ones for the rest.

    Args:
        sizes: axis → its least size, the one to tune for, and the most.

    Raises:
        InputError: an unknown axis, no three sizes in order, or more than the model takes.
    """
    axes = {axis.symbol: axis for spec in signature.inputs for axis in spec.axes if axis.size is None}
    if sizes is not None and not isinstance(sizes, Mapping):
        raise InputError("Sizes are given by axis.", given=repr(sizes), expected=f"a mapping with {', '.join(axes)}")
    asked = dict(sizes or {})
    if unknown := sorted(set(asked).difference(axes)):
        raise InputError(
            "The model has no such axis.",
            given=f"sizes for {', '.join(unknown)}",
            expected=f"sizes for {', '.join(axes) or 'none: every size is fixed'}",
        )
    return {name: _asked(axis, asked[name]) if name in asked else _usual(axis) for name, axis in axes.items()}


def _asked(axis: Axis, sizes: Sequence[int]) -> AxisRange:
    listed = isinstance(sizes, (list, tuple))
    three = listed and len(sizes) == 3 and all(isinstance(size, int) for size in sizes)  # noqa: PLR2004
    if not three or sizes[2] > (axis.most or sizes[2]):
        raise InputError(
            f"These are no sizes for the axis {axis.symbol!r}.",
            given=repr(sizes),
            expected=f"three whole numbers: least, usual, most (up to {axis.most or 'any'})",
        )
    return AxisRange(*sizes)


def _usual(axis: Axis) -> AxisRange:
    usual = _BATCH if axis.symbol == "batch" else _LENGTH
    # The least size that tracing noted is its own, two; a captured graph takes one as well.
    most = min(usual.most, axis.most or usual.most)
    return AxisRange(usual.least, min(usual.usual, most), most)


def profile_of(signature: Signature, ranges: AxisRanges) -> Profile:
    """The shapes of every input that has open axes."""
    return {
        spec.name: {
            "min": [ranges[axis.symbol].least if axis.size is None else axis.size for axis in spec.axes],
            "opt": [ranges[axis.symbol].usual if axis.size is None else axis.size for axis in spec.axes],
            "max": [ranges[axis.symbol].most if axis.size is None else axis.size for axis in spec.axes],
        }
        for spec in signature.inputs
        if any(axis.size is None for axis in spec.axes)
    }
