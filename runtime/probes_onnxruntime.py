"""The probes of `probes.py` as small ONNX graphs in ONNX Runtime sessions: one thread, CPU provider.

Every result but the last node's goes through `Shape`, so that a call copies nothing out and no node is pruned.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import missing_package
from .probes import SLOTS_SEED, Kernel, Probe, Runner

Array = npt.NDArray[Any]
OPSET, IR_VERSION = 18, 9


def onnxruntime_version() -> str:
    """The version that the constants belong to."""
    _, onnxruntime = _packages()
    return str(onnxruntime.__version__)


def onnxruntime_runner(probe: Probe) -> Runner:
    """A callable that runs `probe` once in its own session.

    Raises:
        MissingDependencyError: onnx or onnxruntime is not installed.
    """
    onnx, onnxruntime = _packages()
    graph = _Graph(onnx, probe)
    _BUILDERS[probe.kernel](graph, probe)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph.serialised(), options, providers=["CPUExecutionProvider"])
    feed = graph.feed
    return lambda: session.run(None, feed)


def _packages() -> tuple[Any, Any]:
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        package = error.name or "onnxruntime"
        raise missing_package(package, extra="onnxruntime", feature="measuring ONNX Runtime") from error
    return onnx, onnxruntime


class _Graph:
    """A growing list of nodes, with random float32 inputs and constants."""

    def __init__(self, onnx: Any, probe: Probe) -> None:
        self._onnx = onnx
        self._random = np.random.default_rng(SLOTS_SEED)
        self._nodes: list[Any] = []
        self._constants: dict[str, Array] = {}
        self._results: list[str] = []
        self.feed: dict[str, Array] = {}
        self.probe = probe

    def random(self, *shape: int) -> Array:
        return self._random.standard_normal(shape).astype(np.float32)

    def given(self, array: Array) -> str:
        name = f"x{len(self.feed)}"
        self.feed[name] = array
        return name

    def constant(self, array: Array) -> str:
        name = f"w{len(self._constants)}"
        self._constants[name] = array
        return name

    def node(self, operator: str, *inputs: str, attributes: dict[str, Any] | None = None) -> str:
        name = f"y{len(self._nodes)}"
        self._nodes.append(self._onnx.helper.make_node(operator, list(inputs), [name], **(attributes or {})))
        return name

    def result(self, name: str) -> None:
        self._results.append(self.node("Shape", name))

    def serialised(self) -> bytes:
        helper, kinds = self._onnx.helper, self._onnx.TensorProto
        integers, floats = kinds.INT64, kinds.FLOAT
        inputs = [
            helper.make_tensor_value_info(n, integers if v.dtype == np.int64 else floats, [None] * v.ndim)
            for n, v in self.feed.items()
        ]
        outputs = [helper.make_tensor_value_info(n, integers, None) for n in self._results]
        constants = [self._onnx.numpy_helper.from_array(v, n) for n, v in self._constants.items()]
        graph = helper.make_graph(self._nodes, "probe", inputs, outputs, constants)
        opset = [helper.make_opsetid("", OPSET)]
        model: bytes = helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION).SerializeToString()
        return model


def _activation(graph: _Graph, width: int) -> str:
    return graph.given(graph.random(graph.probe.batch, graph.probe.tokens, width))


def _empty(graph: _Graph, probe: Probe) -> None:
    graph.result(_activation(graph, probe.width))


def _add(graph: _Graph, probe: Probe) -> None:
    x, other = _activation(graph, probe.width), _activation(graph, probe.width)
    for copy in range(probe.copies):
        # Turned about, so that the copies are not one and the same expression to the engine.
        graph.result(graph.node("Add", *((x, other) if copy % 2 else (other, x))))


def _broadcast(graph: _Graph, probe: Probe) -> None:
    mask = graph.given(graph.random(probe.batch, 1, probe.rank))
    for _ in range(probe.copies):
        graph.result(graph.node("Mul", _activation(graph, probe.rank), mask))


def _constant_matmul(graph: _Graph, probe: Probe, inner: int, outer: int) -> None:
    x = _activation(graph, inner)
    for _ in range(probe.copies):
        graph.result(graph.node("MatMul", x, graph.constant(graph.random(inner, outer))))


def _dense(graph: _Graph, probe: Probe) -> None:
    _constant_matmul(graph, probe, probe.width, probe.width)


def _down(graph: _Graph, probe: Probe) -> None:
    _constant_matmul(graph, probe, probe.width, probe.rank)


def _up(graph: _Graph, probe: Probe) -> None:
    _constant_matmul(graph, probe, probe.rank, probe.width)


def _turned(graph: _Graph, factor: str) -> str:
    """Rows of A as columns: the engine fuses this transpose into the matrix multiply behind it."""
    return graph.node("Transpose", factor, attributes={"perm": [0, 2, 1]})


def _batched_down(graph: _Graph, probe: Probe) -> None:
    x = _activation(graph, probe.width)
    for _ in range(probe.copies):
        factor = graph.given(graph.random(probe.batch, probe.rank, probe.width))
        graph.result(graph.node("MatMul", x, _turned(graph, factor)))


def _batched_up(graph: _Graph, probe: Probe) -> None:
    u = _activation(graph, probe.rank)
    for _ in range(probe.copies):
        graph.result(graph.node("MatMul", u, graph.given(graph.random(probe.batch, probe.rank, probe.width))))


def _tiny_sites(graph: _Graph, probe: Probe) -> None:
    y = _activation(graph, probe.width)
    index = graph.given(np.zeros((probe.batch, probe.rank), dtype=np.int64))
    slots = graph.given(graph.random(probe.batch, probe.rank, 1))
    for _ in range(probe.copies):
        a, b = (graph.constant(graph.random(probe.rank, probe.width)) for _ in "AB")
        rows = graph.node("Mul", graph.node("Gather", a, index), slots)
        u = graph.node("MatMul", y, _turned(graph, rows))
        y = graph.node("Add", y, graph.node("MatMul", u, graph.node("Gather", b, index)))
    graph.result(y)


_BUILDERS = {
    Kernel.EMPTY: _empty,
    Kernel.TINY_SITE: _tiny_sites,
    Kernel.ADD: _add,
    Kernel.BROADCAST: _broadcast,
    Kernel.DENSE: _dense,
    Kernel.DOWN: _down,
    Kernel.UP: _up,
    Kernel.BATCHED_DOWN: _batched_down,
    Kernel.BATCHED_UP: _batched_up,
}
