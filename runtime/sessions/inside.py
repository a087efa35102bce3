"""Values inside an artifact's graph: the model once more in ONNX Runtime on the CPU, with further outputs.

For people who look at one input. The artifact is not changed: the model with more outputs exists in memory only, and
reads its weights from the artifact's file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import missing_package
from ..artifact import Artifact
from .inputs import feed
from .onnxruntime import MODEL_FILE, specs_of
from .onnxruntime_start import onnxruntime_module

_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
_ERRORS_ONLY = 3


@dataclass(frozen=True)
class OperatorCall:
    """A call of an operator of ours in the graph.

    Attributes:
        module: path of the torch module that it stands behind; inputs, outputs: names of values.
    """

    module: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def operator_calls(artifact: Artifact, operator: str) -> tuple[OperatorCall, ...]:
    """The calls of `gatefx::operator` in graph order."""
    nodes = (node for node in _model(artifact).graph.node if (node.domain, node.op_type) == ("gatefx", operator))
    return tuple(OperatorCall(node.name.rpartition("/")[0], tuple(node.input), tuple(node.output)) for node in nodes)


def values_inside(artifact: Artifact, names: Sequence[str], arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """What the values `names` are on one batch, at the budget of the export.

    Args:
        artifact: of an exported model; names: of values in its graph; arrays: input name → array.

    Raises:
        InputError: inputs that do not fit.
    """
    import onnx

    runtime, model = onnxruntime_module(), _model(artifact)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = runtime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.add_session_config_entry(_WEIGHTS_FOLDER, str(artifact.path))
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    fed = feed(arrays, specs_of(session.get_inputs()))
    found: list[np.ndarray] = session.run(list(names), fed)
    return dict(zip(names, found, strict=True))


def _model(artifact: Artifact) -> Any:
    """The graph without its weights."""
    try:
        import onnx
    except ImportError as error:
        raise missing_package("onnx", extra="onnxruntime", feature="Looking into an exported model") from error
    return onnx.load(artifact.file(MODEL_FILE), load_external_data=False)
