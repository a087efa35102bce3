"""`index_copy`, by which a static cache is written, in ONNX.

torch.onnx spells it with the axis in front, which copies a cache twice. `ScatterElements` writes along any axis, and a
runtime whose caller gives it one buffer for both ends writes in place.
"""

from __future__ import annotations

from typing import Any

from onnxscript import INT64
from onnxscript.onnx_opset import opset18 as op


def translate_index_copy(states: Any, dim: int, index: INT64, source: Any) -> Any:
    """(…, N, …), the axis, (T,), (…, T, …) → (…, N, …)."""
    rank = len(source.shape)
    axis = dim % rank
    others = [place for place in range(rank) if place != axis]
    places = op.Unsqueeze(index, op.Constant(value_ints=others)) if others else index
    return op.ScatterElements(states, op.Expand(places, op.Shape(source)), source, axis=axis)
