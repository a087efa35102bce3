"""export(…, backend="tensorrt"): everything of a TensorRT engine that needs no GPU, in one artifact folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from .errors import InputError
from .passes.deployed import DeployedModel
from .passes.lower.onnx import save_onnx
from .passes.lower.onnx_precision import PRECISIONS, Precision
from .passes.lower.tensorrt import lower_to_tensorrt, profile_of, ranges_of
from .runtime.manifest import BUILT_LATER
from .runtime.tensorrt.build_engine import ENGINE_FILE
from .runtime.tensorrt.build_files import PYTHON_SCRIPT, SHELL_SCRIPT, write_build_files
from .runtime.tensorrt.verify import trial_build

TENSORRT = "tensorrt"


@dataclass(frozen=True)
class EngineRequest:
    """What an engine is to be; see `gatefx.export`."""

    opset: int
    precision: Precision
    sizes: Mapping[str, Sequence[int]] | None
    check: bool


def check_engine_request(model: DeployedModel, request: EngineRequest) -> None:
    """Refuse what no engine can be before anything is written.

    Raises:
        InputError: an unknown precision, sizes that do not fit, or a model that runs uncertain examples again.
    """
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
    """Write model, profile and build scripts to `folder`; the manifest's fields that say what they are.

    Raises:
        GatefxError: as `lower_to_tensorrt`, and with `check` as `trial_build`.
    """
    signature = model.signature
    ranges = ranges_of(signature, request.sizes)
    graph = lower_to_tensorrt(
        model.graph_module, signature, example, ranges, opset=request.opset, precision=request.precision
    )
    save_onnx(graph, folder)
    write_build_files(folder, profile_of(signature, ranges))
    return {
        "precision": request.precision,
        "sizes": {name: asdict(size) for name, size in ranges.items()},
        "trial_build": asdict(trial_build(folder)) if request.check else None,
        "remains": f"{ENGINE_FILE}: run {SHELL_SCRIPT} or {PYTHON_SCRIPT} where TensorRT and the GPU are",
        BUILT_LATER: [ENGINE_FILE],
    }
