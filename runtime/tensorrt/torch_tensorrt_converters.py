"""What torch-tensorrt has to be taught: layers of TensorRT for two operators of gatefx, and for two of torch.

    gatefx::select_tokens   two TopK, whose count is a tensor
    gatefx::routed_linear   tokens sorted by what they chose, one product for each weight, tokens put back
    aten::gather            torch-tensorrt's own layer, which it offers for fixed sizes only
    aten::cumsum            one layer, where torch-tensorrt builds a loop that TensorRT for RTX refuses

The first two are the bodies of `runtime/ops/onnx_*_functions.py`, layer for layer. Axes as in `runtime/ops`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorrt as trt
import torch
from torch_tensorrt.dynamo.conversion import dynamo_tensorrt_converter
from torch_tensorrt.dynamo.conversion._ConverterRegistry import ConverterPriority
from torch_tensorrt.dynamo.conversion.converter_utils import get_trt_tensor

from ..ops.token_ops import select_tokens
from ..ops.update_ops import routed_linear

Arguments = Sequence[Any]
Options = Mapping[str, Any]


def register_converters() -> None:
    """Have torch-tensorrt convert the operators, in this process; again is no other than once."""
    for operator, converter in _CONVERTERS.items():
        dynamo_tensorrt_converter(operator, supports_dynamic_shapes=True, priority=ConverterPriority.HIGH)(converter)


class _Layers:
    """Layers added to the network of one conversion, each answering with its output."""

    def __init__(self, context: Any, name: str) -> None:
        self._context, self.network, self._name = context, context.net, name

    def tensor(self, value: Any, name: str) -> Any:
        """The network's tensor of `value`, a weight or a tensor already."""
        return get_trt_tensor(self._context, value, f"{self._name}_{name}")

    def numbers(self, values: Any) -> Any:
        array = np.asarray(values, np.int64)
        return self.network.add_constant(array.shape, array).get_output(0)

    def pair(self, operation: str, left: Any, right: Any) -> Any:
        kind = getattr(trt.ElementWiseOperation, operation)
        return self.network.add_elementwise(left, right, kind).get_output(0)

    def cast(self, value: Any, dtype: Any) -> Any:
        return self.network.add_cast(value, dtype).get_output(0)

    def reduce(self, value: Any, operation: str) -> Any:
        """Over axis 0, which stays."""
        return self.network.add_reduce(value, getattr(trt.ReduceOperation, operation), 1, True).get_output(0)

    def shape(self, value: Any) -> Any:
        return self.network.add_shape(value).get_output(0)

    def reshape(self, value: Any, shape: Any) -> Any:
        """To a tuple, or to a tensor that says the shape."""
        layer = self.network.add_shuffle(value)
        if isinstance(shape, tuple):
            layer.reshape_dims = shape
        else:
            layer.set_input(1, shape)
        return layer.get_output(0)

    def concatenate(self, values: Sequence[Any]) -> Any:
        layer = self.network.add_concatenation(list(values))
        layer.axis = 0
        return layer.get_output(0)

    def rows(self, value: Any, start: Any, count: Any, width: int) -> Any:
        """`count` rows of a matrix from `start` on, both tensors (1,)."""
        layer = self.network.add_slice(value, (0, 0), (1, 1), (1, 1))
        layer.set_input(1, self.concatenate([start, self.numbers([0])]))
        layer.set_input(2, self.concatenate([count, self.numbers([width])]))
        return layer.get_output(0)

    def running_sum(self, value: Any, axis: int) -> Any:
        place = self.network.add_constant((), np.asarray(axis, np.int32)).get_output(0)
        return self.network.add_cumulative(value, place, trt.CumulativeOperation.SUM, False, False).get_output(0)

    def transposed_product(self, left: Any, right: Any) -> Any:
        """left (n, k) · right (m, k) transposed."""
        none, turned = trt.MatrixOperation.NONE, trt.MatrixOperation.TRANSPOSE
        return self.network.add_matrix_multiply(left, none, right, turned).get_output(0)


def _select_tokens(context: Any, target: Any, arguments: Arguments, options: Options, name: str) -> tuple[Any, Any]:  # noqa: ARG001  # torch-tensorrt's signature
    layers = _Layers(context, name)
    priority, counts = arguments
    length = layers.network.add_slice(layers.shape(priority), (1,), (1,), (1,)).get_output(0)
    most = layers.pair("MIN", layers.pair("MAX", layers.reduce(counts, "MAX"), layers.numbers([1])), length)
    count = layers.cast(layers.reshape(most, ()), trt.int32)

    def top(value: Any, operation: Any) -> Any:
        layer = layers.network.add_topk(value, operation, 1, 1 << 1)
        layer.set_input(1, count)
        return layer

    ranked = top(priority, trt.TopKOperation.MAX).get_output(1)
    listed = top(ranked, trt.TopKOperation.MIN)
    limit = layers.reshape(layers.cast(counts, trt.int32), (-1, 1))
    return layers.cast(listed.get_output(0), trt.int64), layers.pair("LESS", listed.get_output(1), limit)


def _routed_linear(context: Any, target: Any, arguments: Arguments, options: Options, name: str) -> Any:  # noqa: ARG001
    layers = _Layers(context, name)
    x, weight0, weight1, bias, choice = arguments
    first, second = layers.tensor(weight0, "weight0"), layers.tensor(weight1, "weight1")
    d_out, d_in = first.shape
    chosen = layers.reshape(choice, (-1,))
    places, order, zeros, count = _sorted_places(layers, chosen)
    ordered = layers.network.add_gather(layers.reshape(x, (-1, d_in)), order, 0).get_output(0)
    parts = [
        layers.transposed_product(layers.rows(ordered, layers.numbers([0]), zeros, d_in), first),
        layers.transposed_product(layers.rows(ordered, zeros, layers.pair("SUB", count, zeros), d_in), second),
    ]
    answers = layers.network.add_gather(layers.concatenate(parts), places, 0).get_output(0)
    if bias is not None:
        answers = layers.pair("SUM", answers, layers.reshape(layers.tensor(bias, "bias"), (1, d_out)))
    return layers.reshape(answers, layers.concatenate([layers.shape(choice), layers.numbers([d_out])]))


def _sorted_places(layers: _Layers, chosen: Any) -> tuple[Any, Any, Any, Any]:
    """Where each of N tokens goes, which token comes to each place, how many chose 0, and N; see `RoutedLinear`."""
    taken = layers.cast(chosen, trt.int64)
    count = layers.shape(chosen)
    line = layers.network.add_fill((1,), trt.FillOperation.LINSPACE, trt.int64)
    for place, value in enumerate((count, layers.numbers(0), layers.numbers([1]))):
        line.set_input(place, value)
    numbers = line.get_output(0)
    ones = layers.running_sum(taken, 0)
    zeros = layers.pair("SUB", count, layers.reduce(taken, "SUM"))
    before = layers.pair("SUB", layers.pair("SUM", zeros, ones), layers.numbers([1]))
    places = layers.network.add_select(chosen, before, layers.pair("SUB", numbers, ones)).get_output(0)
    scattered = layers.network.add_scatter(numbers, places, numbers, trt.ScatterMode.ELEMENT)
    scattered.axis = 0
    return places, scattered.get_output(0), zeros, count


def _gather(context: Any, target: Any, arguments: Arguments, options: Options, name: str) -> Any:  # noqa: ARG001
    layers = _Layers(context, name)
    values, axis, places = layers.tensor(arguments[0], "values"), arguments[1], layers.tensor(arguments[2], "places")
    layer = layers.network.add_gather(values, places, axis % len(values.shape))
    layer.mode = trt.GatherMode.ELEMENT
    return layer.get_output(0)


def _cumsum(context: Any, target: Any, arguments: Arguments, options: Options, name: str) -> Any:  # noqa: ARG001
    layers = _Layers(context, name)
    value = layers.tensor(arguments[0], "values")
    return layers.running_sum(value, arguments[1] % len(value.shape))


_CONVERTERS = {
    select_tokens._opoverload: _select_tokens,
    routed_linear._opoverload: _routed_linear,
    torch.ops.aten.gather.default: _gather,
    torch.ops.aten.cumsum.default: _cumsum,
}
