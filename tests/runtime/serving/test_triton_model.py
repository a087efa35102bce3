"""Inside Triton's python back end, whose module is stood in for here: ragged requests, budgets, errors of one."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from gatefx.runtime.serving.options import ServeOptions
from gatefx.runtime.serving.triton_config import OPTIONS_KEY
from gatefx.runtime.serving.triton_repository import Repository, write_repository


@dataclass
class Tensor:
    """Triton's: tensors come and go by DLPack alone, as its own `as_numpy` may be built for another numpy."""

    name: str
    array: np.ndarray

    def __dlpack__(self, stream: Any = None) -> Any:
        return self.array.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0

    @staticmethod
    def from_dlpack(name: str, capsule: Any) -> Tensor:
        return Tensor(name, np.from_dlpack(Capsule(capsule)))


@dataclass
class Capsule:
    """What numpy reads a capsule from."""

    capsule: Any

    def __dlpack__(self) -> Any:
        return self.capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


@dataclass
class InferenceResponse:
    output_tensors: list[Tensor]
    error: Any = None


@dataclass
class Request:
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


def tensor_of(request: Request, name: str) -> Tensor | None:
    return Tensor(name, request.arrays[name]) if name in request.arrays else None


@pytest.fixture(scope="module")
def model(served_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Loaded as Triton does: from the `model.py` of a repository."""
    stand_in: Any = ModuleType("triton_python_backend_utils")
    stand_in.Tensor, stand_in.InferenceResponse, stand_in.TritonError = Tensor, InferenceResponse, str
    stand_in.get_input_tensor_by_name = tensor_of
    written = write_repository(served_folder, Repository(tmp_path_factory.mktemp("models"), "reviews"), ragged=True)
    options = json.dumps({"max_batch": 8, "threads": 1})
    config = {"parameters": {OPTIONS_KEY: {"string_value": options}}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, stand_in.__name__, stand_in)
        namespace: dict[str, Any] = {}
        exec((written / "1" / "model.py").read_text(), namespace)
        loaded = namespace["TritonPythonModel"]()
        loaded.initialize({"model_repository": str(written), "model_version": "1", "model_config": json.dumps(config)})
        yield loaded


def test_ragged_requests_of_several_budgets_are_answered(
    model: Any, session: Any, text: Callable[[int], dict[str, np.ndarray]], tolerance: Any
) -> None:
    budgets = [None, 1.0, 4.0, 2.5]
    asked = [(text(seed), budgets[seed % 4]) for seed in range(24)]
    requests = [
        Request(given if budget is None else {**given, "budget_ccm": np.array([[budget]])}) for given, budget in asked
    ]
    for (given, budget), response in zip(asked, model.execute(requests), strict=True):
        assert response.error is None
        expected = session.run(given, budget=budget)["logits"]
        np.testing.assert_allclose(response.output_tensors[0].array, expected, atol=tolerance[torch.float32], rtol=0)


def test_requests_of_several_examples_keep_their_rows(model: Any, session: Any, text: Any, tolerance: Any) -> None:
    rows = {name: np.concatenate([array, array[:, ::-1]]) for name, array in text(1).items()}
    first, second = model.execute([Request(rows), Request(text(2))])
    np.testing.assert_allclose(first.output_tensors[0].array, session.run(rows)["logits"], atol=1e-5, rtol=0)
    assert first.output_tensors[0].array.shape == (2, 2)
    expected = session.run(text(2))["logits"]
    np.testing.assert_allclose(second.output_tensors[0].array, expected, atol=tolerance[torch.float32], rtol=0)


def test_an_error_is_its_own_requests(model: Any, session: Any, text: Any, tolerance: Any) -> None:
    unknown = {**text(0), "input_ids": np.full_like(text(0)["input_ids"], 9999)}
    odd = {**text(0), "budget_ccm": np.array([[99.0]])}
    found = model.execute([Request(unknown), Request(text(3)), Request(odd)])
    assert "could not run the model" in found[0].error
    assert "calibrated" in found[2].error
    assert found[1].error is None
    expected = session.run(text(3))["logits"]
    np.testing.assert_allclose(found[1].output_tensors[0].array, expected, atol=tolerance[torch.float32], rtol=0)


def test_the_options_of_the_configuration_are_those_of_a_server() -> None:
    assert ServeOptions(max_batch=8, threads=1) == ServeOptions()
