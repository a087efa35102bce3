"""export(…, backend="tensorrt"): everything of a TensorRT engine that needs no GPU, in one artifact folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from .errors import InputError
from .passes.deployed import DeployedModel
from .passes.graph.signature import Signature
from .passes.lower.dynamic_export import output_places
from .passes.lower.onnx import save_onnx
from .passes.lower.onnx_precision import PRECISIONS, Precision
from .passes.lower.tensorrt import TENSORRT_OPSET, lower_to_tensorrt, profile_of, ranges_of
from .passes.lower.tensorrt_plugins import kernels_needed
from .passes.lower.torch_tensorrt import example_within, lower_to_torch_tensorrt
from .runtime.manifest import BUILT_LATER
from .runtime.tensorrt.axes import AxisRanges
from .runtime.tensorrt.build_engine import ENGINE_FILE
from .runtime.tensorrt.build_files import (
    PROGRAM_FILE,
    PYTHON_SCRIPT,
    SHELL_SCRIPT,
    write_build_files,
    write_torch_build_files,
)
from .runtime.tensorrt.plugin_files import write_plugins
from .runtime.tensorrt.torch_tensorrt import checked_dry_run
from .runtime.tensorrt.verify import trial_build

Through = Literal["onnx", "torch_tensorrt"]
_ONNX, _TORCH_TENSORRT = "onnx", "torch_tensorrt"


@dataclass(frozen=True)
class EngineRequest:
    """What an engine is to be; see `gatefx.export`."""

    opset: int | None
    precision: Precision
    sizes: Mapping[str, Sequence[int]] | None
    check: bool
    through: Through
    plugins: bool


def check_engine_request(model: DeployedModel, request: EngineRequest) -> None:
    """Refuse what no engine can be before anything is written.

    Raises:
        InputError: an unknown precision or way, an opset or plugins where there is no ONNX, sizes that do not fit, or
            a model that runs uncertain examples again.
    """
    if request.through not in (_ONNX, _TORCH_TENSORRT) or (request.through != _ONNX and request.opset is not None):
        raise InputError(
            "There is no such way to TensorRT.",
            given=f"through={request.through!r}, opset={request.opset!r}",
            expected=f"{_ONNX!r}, or {_TORCH_TENSORRT!r} without opset",
        )
    if request.plugins and request.through != _ONNX:
        raise InputError(
            "Plugins are called by name from ONNX.",
            given=f"plugins=True, through={request.through!r}",
            expected=f"through={_ONNX!r} where plugins=True",
        )
    if request.precision not in PRECISIONS:
        raise InputError(
            "There is no such precision.", given=f"precision={request.precision!r}", expected=", ".join(PRECISIONS)
        )
    if model.recovery is not None:
        raise InputError(
            "An engine has fixed budgets, so uncertain examples cannot be run again with every token.",
            given="a model with a rule of recovery",
            expected="a model without one",
            remedy='optimize without recovery, or export with backend="onnxruntime"',
        )
    ranges_of(model.signature, request.sizes)


def write_tensorrt(
    model: DeployedModel, folder: Path, example: Mapping[str, Tensor], request: EngineRequest
) -> dict[str, Any]:
    """Write what the engine is built from to `folder`; the manifest's fields that say what they are.

    Raises:
        GatefxError: as the lowering, and with `check` as `trial_build` or `checked_dry_run`.
    """
    ranges = ranges_of(model.signature, request.sizes)
    through = _write_onnx if request.through == _ONNX else _write_program
    return {
        "precision": request.precision,
        "through": request.through,
        "sizes": {name: asdict(size) for name, size in ranges.items()},
        **through(model, folder, example, ranges, request),
        BUILT_LATER: [ENGINE_FILE],
    }


def _write_onnx(
    model: DeployedModel, folder: Path, example: Mapping[str, Tensor], ranges: AxisRanges, request: EngineRequest
) -> dict[str, Any]:
    """The ONNX model that TensorRT's parser takes, its profile and build scripts."""
    opset = TENSORRT_OPSET if request.opset is None else request.opset
    graph = lower_to_tensorrt(
        model.graph_module, model.signature, example, ranges,
        opset=opset, precision=request.precision, plugins=request.plugins,
    )  # fmt: skip
    save_onnx(graph, folder)
    write_build_files(folder, profile_of(model.signature, ranges), plugins=request.plugins)
    kernels = kernels_needed(graph, request.precision) if request.plugins else []
    if kernels:
        write_plugins(folder, kernels)
    return {
        "opset": opset,
        "plugins": [asdict(kernel) for kernel in kernels],
        "trial_build": asdict(trial_build(folder)) if request.check else None,
        "remains": f"{ENGINE_FILE}: run {SHELL_SCRIPT} or {PYTHON_SCRIPT} where TensorRT and the GPU are",
    }


def _write_program(
    model: DeployedModel, folder: Path, example: Mapping[str, Tensor], ranges: AxisRanges, request: EngineRequest
) -> dict[str, Any]:
    """The program that torch-tensorrt compiles, its profile and build script."""
    signature = model.signature
    profile = profile_of(signature, ranges)
    batch = example_within(example, signature, ranges)
    program = lower_to_torch_tensorrt(model.graph_module, signature, batch, ranges, request.precision)
    dry_run = asdict(checked_dry_run(program, profile)) if request.check else None
    torch.export.save(program, folder / PROGRAM_FILE)
    write_torch_build_files(folder, profile)
    return {
        "engine_outputs": _engine_outputs(program, signature),
        "dry_run": dry_run,
        "remains": f"{ENGINE_FILE}: run {PYTHON_SCRIPT} where torch-tensorrt, gatefx and the GPU are",
    }


def _engine_outputs(program: torch.export.ExportedProgram, signature: Signature) -> dict[str, str]:
    """By output, the name that torch-tensorrt gives it in the engine."""
    places = output_places(program, signature.outputs)
    return {name: f"output{place}" for name, place in zip(signature.outputs, places, strict=True)}
