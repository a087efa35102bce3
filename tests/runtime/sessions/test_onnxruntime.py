from __future__ import annotations

import builtins
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from gatefx.errors import ArtifactError, BudgetError, InputError, MissingDependencyError, ProviderError
from gatefx.runtime.artifact import ArtifactWriter
from gatefx.runtime.sessions.onnxruntime import OnnxSession

TABLE = {"initializer": "gate.coverage", "table": [[1, 0.1], [4, 0.7], [8, 1.0]]}


def model_bytes() -> bytes:
    """y = ids * coverage, with ids (batch, sequence) int64 and weights (batch, 3) float32; coverage defaults to 0.5."""
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["ids"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("ReduceSum", ["weights"], ["total"], keepdims=0),
            helper.make_node("Mul", ["floats", "gate.coverage"], ["scaled"]),
            helper.make_node("Add", ["scaled", "total"], ["y"]),
        ],
        "small",
        [
            helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "sequence"]),
            helper.make_tensor_value_info("weights", TensorProto.FLOAT, ["batch", 3]),
            helper.make_tensor_value_info("gate.coverage", TensorProto.FLOAT, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "sequence"])],
        [helper.make_tensor("gate.coverage", TensorProto.FLOAT, [], [0.5])],
    )
    opset = [helper.make_opsetid("", 18)]
    return bytes(helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString())


def write(folder: Path, content: bytes | None = None, **fields: Any) -> Path:
    with ArtifactWriter(folder) as writer:
        (writer.path / "model.onnx").write_bytes(model_bytes() if content is None else content)
        writer.commit({"methods": {"ccm": {}}, "budget": 6, "inputs": [], "outputs": [], "axes": {}, **fields})
    return folder


@pytest.fixture
def session(tmp_path: Path) -> OnnxSession:
    return OnnxSession.open(write(tmp_path / "out", runtime_budgets={"ccm": TABLE}), threads=1)


def call(**changes: Any) -> dict[str, Any]:
    return {"ids": np.ones((2, 4), dtype=np.int64), "weights": np.zeros((2, 3), dtype=np.float32), **changes}


def test_what_a_session_says_of_itself(session: OnnxSession) -> None:
    assert session.provider == "CPUExecutionProvider"
    assert [str(spec) for spec in session.inputs] == ["ids: int64 (batch, sequence)", "weights: float32 (batch, 3)"]
    assert [str(spec) for spec in session.outputs] == ["y: float32 (batch, sequence)"]
    assert [spec.name for spec in session.overridable] == ["gate.coverage"]
    assert session.manifest["methods"] == {"ccm": {}}


@pytest.mark.parametrize(
    "ids",
    [
        np.ones((2, 4), dtype=np.int32),
        np.ones((4, 2), dtype=np.uint8).T,
        np.ones((2, 4), dtype=bool),
        torch.ones(2, 4, dtype=torch.int16),
        [[1, 1, 1, 1], [1, 1, 1, 1]],
    ],
)
def test_integers_of_any_kind_and_source(session: OnnxSession, ids: Any) -> None:
    found = session(**call(ids=ids, weights=torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)))
    assert found["y"].dtype == np.float32
    np.testing.assert_allclose(found["y"], np.full((2, 4), 0.5))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"tokens": [[1]]}, "no input 'tokens'"),
        ({"ids": np.ones((2, 4))}, "'ids' does not fit"),
        ({"ids": np.ones(4, dtype=np.int64)}, "2 axes"),
        ({"ids": np.ones((2, 0), dtype=np.int64)}, "no empty axis"),
        ({"ids": np.array([["a", "b"]])}, "expected: numbers"),
        ({"ids": np.array([[None, {}]], dtype=object)}, "expected: numbers"),
        ({"ids": [[1, 2], [3]]}, "pad the rows"),
        ({"ids": np.full((2, 4), 2**63, dtype=np.uint64)}, "fit in int64"),
        ({"ids": None}, "does not fit"),
        ({"weights": np.zeros((2, 4))}, "size 3"),
        ({"weights": np.full((2, 3), 1e300)}, "fit in float32"),
        ({"weights": np.zeros((5, 3))}, "do not agree on the axis 'batch'"),
        ({"ids": torch.ones(2, 4, dtype=torch.int64, device="meta")}, "call .cpu()"),
    ],
)
def test_inputs_that_do_not_fit_say_what_was_expected(
    session: OnnxSession, changes: Mapping[str, Any], text: str
) -> None:
    with pytest.raises(InputError) as caught:
        session(**call(**changes))
    assert text in str(caught.value)
    assert "(batch, " in str(caught.value)


def test_a_missing_input_is_named(session: OnnxSession) -> None:
    with pytest.raises(InputError, match="lacks the input 'weights'"):
        session(ids=[[1]])


def test_the_budget_goes_through_the_table(session: OnnxSession) -> None:
    default = session(**call())["y"][0, 0]
    assert (session.budget, default) == (6, np.float32(0.5))
    np.testing.assert_allclose(session.run(call(), budget=4)["y"], np.full((2, 4), 0.7))
    np.testing.assert_allclose(session.run(call(), budget=2.5)["y"], np.full((2, 4), 0.4), rtol=1e-6)
    assert session(**call())["y"][0, 0] == default
    session.budget = 8
    assert session.budget == 8
    np.testing.assert_allclose(session(**call())["y"], np.ones((2, 4)))
    np.testing.assert_allclose(session.run(call(), budget=1)["y"], np.full((2, 4), 0.1))


def test_a_larger_budget_is_never_a_smaller_value(session: OnnxSession) -> None:
    values = [session.run(call(), budget=budget)["y"][0, 0] for budget in np.linspace(1, 8, 29)]
    assert values == sorted(values)


@pytest.mark.parametrize("budget", [0, -1, 8.5, float("nan"), float("inf"), "6", None, True, [6]])
def test_a_budget_outside_the_table_is_refused_and_changes_nothing(session: OnnxSession, budget: Any) -> None:
    with pytest.raises(BudgetError, match="from 1 to 8"):
        session.budget = budget
    assert session.budget == 6
    if budget is not None:
        with pytest.raises(BudgetError):
            session.run(call(), budget=budget)


def test_a_fed_buffer_is_used_and_beside_a_budget_refused(session: OnnxSession) -> None:
    fed = call(**{"gate.coverage": np.float32(3)})
    session.budget = 8
    np.testing.assert_allclose(session.run(fed)["y"], np.full((2, 4), 3))
    with pytest.raises(BudgetError, match="both"):
        session.run(fed, budget=4)


def test_a_fixed_budget_cannot_be_set(tmp_path: Path) -> None:
    fixed = OnnxSession.open(write(tmp_path / "out"))
    with pytest.raises(BudgetError, match="fixed"):
        fixed.budget = 4
    with pytest.raises(BudgetError, match="fixed"):
        fixed.run(call(), budget=4)
    assert fixed.budget == 6


@pytest.mark.parametrize(
    "table",
    [
        {"initializer": "gate.other", "table": [[1, 0.1]]},
        {"initializer": "gate.coverage", "table": []},
        {"initializer": "gate.coverage", "table": [[1, 0.1], [1, 0.2]]},
        {"initializer": "gate.coverage", "table": [[1, 0.1], [2, 0.3], [3, 0.2]]},
        {"initializer": "gate.coverage", "table": [["x", 0.1]]},
        {"table": [[1, 0.1]]},
        [1],
    ],
)
def test_a_table_that_cannot_be_used_is_an_artifact_error(tmp_path: Path, table: Any) -> None:
    with pytest.raises(ArtifactError, match="budget"):
        OnnxSession.open(write(tmp_path / "out", runtime_budgets={"ccm": table}))


def test_calls_from_many_threads_each_keep_their_budget(session: OnnxSession) -> None:
    def one(index: int) -> bool:
        budget = 1 + 7 * (index % 8) / 7
        found = session.run(call(ids=np.full((2, 4), index)), budget=budget)["y"]
        expected = np.full((2, 4), index * np.interp(budget, [1, 4, 8], [0.1, 0.7, 1.0]))
        return np.allclose(found, expected, rtol=1e-5)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(one, range(200)))


@pytest.mark.parametrize("provider", ["cuda", "tensorrt", "CUDAExecutionProvider", "NoSuchProvider"])
def test_a_provider_that_is_not_there_is_never_replaced(tmp_path: Path, provider: str) -> None:
    with pytest.raises(ProviderError, match=r"ExecutionProvider|NoSuchProvider"):
        OnnxSession.open(write(tmp_path / "out"), provider=provider)


def test_a_silent_fallback_of_the_runtime_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    # A GPU build on a machine without a GPU lists CUDA, warns at most, and runs on the CPU.
    real = onnxruntime.InferenceSession
    listed = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda path, options, providers: real(path, options, providers=["CPUExecutionProvider"]),
    )
    with pytest.raises(ProviderError, match="fell back to CPUExecutionProvider"):
        OnnxSession.open(write(tmp_path / "out"), provider="cuda")
    # Its library is there, and one that it stands on is not.
    library = tmp_path / "package" / "capi" / "libonnxruntime_providers_cuda.so"
    library.parent.mkdir(parents=True)
    library.write_bytes(b"no library")
    monkeypatch.setattr(onnxruntime, "__file__", str(tmp_path / "package" / "__init__.py"))
    with pytest.raises(ProviderError, match="fell back to CPUExecutionProvider") as caught:
        OnnxSession.open(write(tmp_path / "again"), provider="cuda")
    assert "libonnxruntime_providers_cuda.so: " in caught.value.given


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2"])
def test_threads_that_are_no_count(tmp_path: Path, threads: Any) -> None:
    with pytest.raises(InputError, match="threads"):
        OnnxSession.open(write(tmp_path / "out"), threads=threads)


def test_a_model_that_the_runtime_refuses(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not load"):
        OnnxSession.open(write(tmp_path / "out", content=b"no model"))


def test_an_artifact_without_a_model(tmp_path: Path) -> None:
    with ArtifactWriter(tmp_path / "out") as writer:
        writer.commit({"methods": {"ccm": {}}, "budget": 6, "inputs": [], "outputs": [], "axes": {}})
    with pytest.raises(ArtifactError, match=r"no file 'model\.onnx'"):
        OnnxSession.open(tmp_path / "out")


def test_without_onnxruntime_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "onnxruntime":
            raise ImportError(name)
        return real(name, *rest)

    folder = write(tmp_path / "out")
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependencyError, match=r"gatefx\[onnxruntime\]"):
        OnnxSession.open(folder)


def test_a_value_the_model_cannot_take_is_an_input_error(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Gather", ["words", "ids"], ["y"])],
        "lookup",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])],
        [helper.make_tensor("words", TensorProto.FLOAT, [3, 2], [0.0] * 6)],
    )
    content = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()
    onnx.checker.check_model(onnx.load_from_string(content))
    lookup = OnnxSession.open(write(tmp_path / "out", content=content))
    with pytest.raises(InputError, match="could not run"):
        lookup(ids=[7])
