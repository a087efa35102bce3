"""Trial builds: TensorRT for RTX turns a folder's ONNX model into an engine without a GPU, and is asked to here.

A build proves that every operator, type and shape of the graph has an implementation over the given sizes. It proves
nothing about numbers or speed: an engine runs on a GPU only. Rules that the builder does not check come from `lint.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import CaptureError, missing_package
from .build_engine import RefusedError, build


@dataclass(frozen=True)
class TrialBuild:
    """A graph that was built.

    Attributes:
        builder: name and version of what built; engine_bytes: size of the engine, which is then dropped.
    """

    builder: str
    engine_bytes: int


def trial_build(folder: Path) -> TrialBuild:
    """Build the engine of `folder`, see `build_files.py`, and drop it.

    Raises:
        CaptureError: TensorRT refuses the graph; in the words of its parser or builder.
        MissingDependencyError: no tensorrt-rtx here.
    """
    trt = _tensorrt()
    logger, name = _quiet_logger(trt), f"tensorrt-rtx {trt.__version__}"
    try:
        engine = build(trt, logger, folder)
    except RefusedError as refusal:
        raise CaptureError(
            "TensorRT does not take the graph.",
            given="\n".join([str(refusal), *logger.errors]),
            expected=f"a graph that {name} builds",
            remedy='Replace the operator it names, or export with backend="onnxruntime".',
        ) from refusal
    return TrialBuild(name, len(engine))


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
