"""What Triton's python back end runs: requests of several lengths and budgets, answered in batches.

The only file that knows `triton_python_backend_utils`, a module that exists inside that server alone.

Tensors cross by DLPack. Servers up to 2.51 are built for numpy 1: under numpy 2 their `as_numpy` repeats the first
value and an output loses its size (triton-inference-server/python_backend, pull request 384).
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb

from ...errors import GatefxError
from ..sessions.protocol import TensorSpec
from .answering import Answer, answers
from .batching import Request
from .options import ServeOptions
from .served_model import open_session, served_model
from .triton_config import ARTIFACT, OPTIONS_KEY, budget_input


class TritonPythonModel:
    """The interface that Triton calls; one object an instance."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the artifact beside `model.py`.

        Args:
            args: Triton's: model_repository is the model's folder, model_config its configuration as JSON.
        """
        parameters = json.loads(args["model_config"])["parameters"]
        self._options = ServeOptions(**json.loads(parameters[OPTIONS_KEY]["string_value"]))
        folder = str(Path(args["model_repository"]) / args["model_version"] / ARTIFACT)
        self._session = open_session(folder, self._options)
        self._model = served_model(folder, self._session, self._options)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """A response per request of Triton, each of one or more examples; an error is its own request's."""
        taken = [self._examples(request) for request in requests]
        good = [example for examples in taken if isinstance(examples, list) for example in examples]
        found, _ = answers(self._session, self._model, good, width=self._options.width, most=self._options.max_batch)
        rest = iter(found)
        return [
            self._refused(examples)
            if isinstance(examples, GatefxError)
            else self._response([next(rest) for _ in examples])
            for examples in taken
        ]

    def _examples(self, request: Any) -> list[Request] | GatefxError:
        """Of (b, T) inputs and (b, 1) budgets, b examples, or why there are none."""
        arrays = _arrays(request, self._model.inputs)
        chosen = {method: budget_input(method) for method in self._model.budgets}
        given = _arrays(request, chosen.values())
        budgets = {method: given[spec.name] for method, spec in chosen.items() if spec.name in given}
        try:
            return [
                self._model.request(
                    {name: array[row] for name, array in arrays.items()},
                    {method: float(array[row, 0]) for method, array in budgets.items()} or None,
                )
                for row in range(len(next(iter(arrays.values()))))
            ]
        except GatefxError as error:
            return error

    def _response(self, found: Sequence[Answer]) -> Any:
        rows = []
        for answer in found:
            if isinstance(answer, GatefxError):
                return self._refused(answer)
            rows.append(answer)
        arrays = {spec.name: np.concatenate([row[spec.name] for row in rows]) for spec in self._model.outputs}
        return pb.InferenceResponse(output_tensors=[_tensor(name, array) for name, array in arrays.items()])

    def _refused(self, error: GatefxError) -> Any:
        return pb.InferenceResponse(output_tensors=[], error=pb.TritonError(str(error)))


def _arrays(request: Any, specs: Iterable[TensorSpec]) -> dict[str, np.ndarray]:
    """Input name → (b, …), of the inputs that the request has; Triton has checked their types."""
    given = {spec: pb.get_input_tensor_by_name(request, spec.name) for spec in specs}
    # Older servers hand booleans over as integers of 8 bits.
    return {
        spec.name: np.from_dlpack(tensor).astype(spec.dtype, copy=False)
        for spec, tensor in given.items()
        if tensor is not None
    }


def _tensor(name: str, array: np.ndarray) -> Any:
    """One output. Triton copies nothing: `array` lives until the response is sent."""
    capsule = array.__dlpack__()
    tensor = pb.Tensor.from_dlpack(name, capsule)
    # The tensor owns the array now, but the server marks the capsule by another name than numpy looks for.
    ctypes.pythonapi.PyCapsule_SetDestructor(ctypes.py_object(capsule), None)
    return tensor
