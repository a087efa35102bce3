"""Trial builds: TensorRT for RTX turns an ONNX model into an engine on a machine without a GPU, and is asked to here.

A build proves that every operator, type and shape of the graph has an implementation over the given sizes. It proves
nothing about numbers or speed: an engine runs on a GPU only. Rules that the builder does not check come from `lint.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ...errors import InputError, missing_package
from .axes import AxisRange, AxisRanges
from .half_precision import in_half_precision
from .lint import lint

if TYPE_CHECKING:
    import onnx

Precision = Literal["fp32", "fp16"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16")


@dataclass(frozen=True)
class Verdict:
    """What became of one trial build.

    Args:
        precision: of weights and activations; 16-bit networks are cast before the build, as strong typing asks.
        builder: name and version of what built.
        layers: of the network that was read; 0 where it could not be.
        engine_bytes: size of the engine, 0 where there is none.
        refusals: one line for each thing that stands against the graph; none if it is accepted.
    """

    precision: Precision
    builder: str
    layers: int
    engine_bytes: int
    refusals: tuple[str, ...]

    @property
    def accepted(self) -> bool:
        """Whether the graph was built and no rule stands against it."""
        return self.engine_bytes > 0 and not self.refusals


def verify(model: Path, axes: AxisRanges, precisions: Sequence[Precision] = PRECISIONS) -> tuple[Verdict, ...]:
    """Build `model` once in each precision, and judge it by the rules.

    Args:
        model: the ONNX file; its weights may be beside it.
        axes: ranges of every axis that the inputs leave open.
        precisions: to build in.

    Raises:
        InputError: an open axis without a range.
        MissingDependencyError: no tensorrt-rtx here.
    """
    import onnx

    loaded = onnx.load(model)
    _check_axes(loaded, axes)
    broken = tuple(map(str, lint(loaded, axes)))
    return tuple(
        _built(in_half_precision(loaded) if precision == "fp16" else loaded, axes, precision, broken)
        for precision in precisions
    )


def _check_axes(model: onnx.ModelProto, axes: AxisRanges) -> None:
    open_axes = {d.dim_param or "?" for v in model.graph.input for d in v.type.tensor_type.shape.dim if not d.dim_value}
    if missing := sorted(open_axes.difference(axes)):
        raise InputError(
            "An engine is built for ranges of sizes, and some axes have none.",
            given=f"ranges for {sorted(axes)}",
            expected=f"a range for {', '.join(missing)} as well",
        )


def _built(model: onnx.ModelProto, axes: AxisRanges, precision: Precision, broken: tuple[str, ...]) -> Verdict:
    trt = _tensorrt()
    logger = _quiet_logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    name = f"tensorrt-rtx {trt.__version__}"
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model.SerializeToString()):
        return Verdict(precision, name, 0, 0, (*broken, *_parse_errors(parser)))
    _allow_decomposition(trt, network)
    config = builder.create_builder_config()
    config.add_optimization_profile(_profile(builder, network, axes))
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        return Verdict(precision, name, network.num_layers, 0, (*broken, *logger.errors))
    return Verdict(precision, name, network.num_layers, engine.nbytes, broken)


def _allow_decomposition(trt: Any, network: Any) -> None:
    """Let an attention without a fused kernel (small or odd heads, float32) be built from its parts."""
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type.name == "ATTENTION_INPUT":
            # The bindings hand out the base class; its documented way to the layer's own is to name it.
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True


def _profile(builder: Any, network: Any, axes: AxisRanges) -> Any:
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        sizes = tuple(tensor.shape)
        if -1 in sizes:
            ranges = [
                (axes[tensor.get_dimension_name(axis)] if size == -1 else AxisRange(size, size, size))
                for axis, size in enumerate(sizes)
            ]
            bounds = zip(*((r.least, r.usual, r.most) for r in ranges), strict=True)
            profile.set_shape(tensor.name, *bounds)
    return profile


def _parse_errors(parser: Any) -> Iterator[str]:
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        inside = " in ".join([repr(error.node_name()), *error.local_function_stack()])
        yield f"{error.node_operator()} {inside}: {error.desc()}"


def _quiet_logger(trt: Any) -> Any:
    """A logger that keeps what the builder complains of instead of printing it."""

    class Kept(trt.ILogger):  # type: ignore[misc]  # its base is only known where the package is
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)

    return Kept()


def _tensorrt() -> Any:
    try:
        import tensorrt_rtx
    except ImportError as error:
        raise missing_package("tensorrt-rtx", extra="tensorrt", feature="A trial build") from error
    return tensorrt_rtx
