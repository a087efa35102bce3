"""Values inside an artifact's graph: the model once more in ONNX Runtime on the CPU, with further outputs.

For people who look at one input. The artifact is not changed: the model with more outputs exists in memory only, and
reads its weights from the artifact's file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from ...errors import missing_package
from ..artifact import Artifact
from .budget import BudgetTable
from .inputs import feed
from .onnxruntime import MODEL_FILE, specs_of
from .onnxruntime_start import WEIGHTS_FOLDER, onnxruntime_module, session_options


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


class InsideSession:
    """A session whose outputs are the values `names` of the graph.

    Args:
        artifact: of an exported model; names: of values in its graph; threads: as `OnnxSession.open`.
    """

    def __init__(self, artifact: Artifact, names: Sequence[str], *, threads: int | None = None) -> None:
        import onnx

        runtime, model = onnxruntime_module(), _model(artifact)
        there = {output.name for output in model.graph.output}
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in there)
        options = session_options(runtime, threads)
        options.add_session_config_entry(WEIGHTS_FOLDER, str(artifact.path))
        session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        self._names, self._session = list(names), session
        self._inputs = specs_of(session.get_inputs())
        self._overridable = specs_of(session.get_overridable_initializers())

    def run(
        self, arrays: Mapping[str, Any], budgets: Mapping[BudgetTable, float] = MappingProxyType({})
    ) -> dict[str, np.ndarray]:
        """The values on one batch.

        Args:
            arrays: input name → array; budgets: other than those of the export, each by its table.

        Raises:
            InputError: inputs that do not fit; BudgetError: a budget outside its table.
        """
        specs = {spec.name: spec for spec in self._overridable}
        levels = {table.initializer: table.fed(b, specs[table.initializer]) for table, b in budgets.items()}
        fed = feed({**arrays, **levels}, self._inputs, self._overridable)
        found: list[np.ndarray] = self._session.run(self._names, fed)
        return dict(zip(self._names, found, strict=True))


def values_inside(artifact: Artifact, names: Sequence[str], arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """What the values `names` are on one batch, at the budget of the export; see `InsideSession`."""
    return InsideSession(artifact, names).run(arrays)


def _model(artifact: Artifact) -> Any:
    """The graph without its weights."""
    try:
        import onnx
    except ImportError as error:
        raise missing_package("onnx", extra="onnxruntime", feature="Looking into an exported model") from error
    return onnx.load(artifact.file(MODEL_FILE), load_external_data=False)
