"""An ONNX model in 16-bit floating point: TensorRT's networks are strongly typed, so the model is cast before a build.

The cast is ONNX Runtime's own; numbers beyond the range of float16 become its largest, as attention masks need.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from ...errors import missing_package

if TYPE_CHECKING:
    import onnx


def in_half_precision(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` whose float32 weights, inputs, activations and outputs are float16.

    Local functions are inlined first, so that the constants in their bodies are cast too.

    Raises:
        MissingDependencyError: no onnxruntime here.
    """
    from onnx import inliner

    try:
        from onnxruntime.transformers.float16 import convert_float_to_float16
    except ImportError as error:
        raise missing_package("onnxruntime", extra="onnxruntime", feature="Casting a graph to 16 bits") from error

    flat = inliner.inline_local_functions(model)
    with warnings.catch_warnings():
        # Each number that float16 cannot hold is reported one by one; the docstring says what becomes of them.
        warnings.simplefilter("ignore", UserWarning)
        half: onnx.ModelProto = convert_float_to_float16(flat, disable_shape_infer=True, op_block_list=[])
    return half
