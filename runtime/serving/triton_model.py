"""What Triton's python back end runs: requests of several lengths and budgets, answered in batches.

The only file that knows `triton_python_backend_utils`, a module that exists inside that server alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb

from ...errors import GatefxError
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
        arrays = {spec.name: pb.get_input_tensor_by_name(request, spec.name).as_numpy() for spec in self._model.inputs}
        budgets = {}
        for method in self._model.budgets:
            given = pb.get_input_tensor_by_name(request, budget_input(method))
            if given is not None:
                budgets[method] = given.as_numpy()
        try:
            return [
                self._model.request(
                    {name: array[row] for name, array in arrays.items()},
                    {name: float(array[row, 0]) for name, array in budgets.items()} or None,
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
        tensors = [
            pb.Tensor(spec.name, np.concatenate([row[spec.name] for row in rows])) for spec in self._model.outputs
        ]
        return pb.InferenceResponse(output_tensors=tensors)

    def _refused(self, error: GatefxError) -> Any:
        return pb.InferenceResponse(output_tensors=[], error=pb.TritonError(str(error)))
