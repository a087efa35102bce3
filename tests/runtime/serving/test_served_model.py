"""A door takes one example that fits, and says of everything else what would."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gatefx.errors import ArtifactError, BudgetError, InputError
from gatefx.runtime.artifact import ArtifactWriter
from gatefx.runtime.serving.options import ServeOptions
from gatefx.runtime.serving.served_model import ServedModel, open_session, served_model
from gatefx.runtime.sessions.protocol import TensorSpec

GOOD = {"input_ids": [7, 8, 9], "attention_mask": [1, 1, 1]}


@pytest.fixture(scope="module")
def model(session: Any, served_folder: Path) -> ServedModel:
    return served_model(str(served_folder), session, ServeOptions())


@pytest.mark.parametrize("wrap", [list, np.asarray, lambda row: [row], lambda row: np.asarray([row])])
def test_one_example_may_come_with_or_without_its_batch_axis(model: ServedModel, wrap: Callable[[Any], Any]) -> None:
    request = model.request({name: wrap(row) for name, row in GOOD.items()}, budget=3)
    assert request.length == 3
    assert request.budget == {"ccm": 3.0}
    assert {name: (array.shape, array.dtype.name) for name, array in request.arrays.items()} == {
        "input_ids": ((1, 3), "int64"),
        "attention_mask": ((1, 3), "int64"),
    }


@pytest.mark.parametrize("name", ["legal", "", 3, ["legal"], {"a": 1}, True])
def test_adapters_that_are_not_there_are_refused(model: ServedModel, name: Any) -> None:
    with pytest.raises(InputError, match="no such adapter"):
        model.request(GOOD, adapter=name)
    there = replace(model, adapters=("medical",))
    with pytest.raises(InputError, match="one of medical"):
        there.request(GOOD, adapter=name)
    assert there.request(GOOD, adapter="medical").adapter == "medical"
    assert there.described()["adapters"] == ["medical"]


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ([1, 2], "Inputs have names"),
        ({"input_ids": [1, 2]}, "lacks the input 'attention_mask'"),
        ({**GOOD, "labels": [1, 2, 3]}, "no input 'labels'"),
        ({**GOOD, "input_ids": [1.5, 2.0, 3.0]}, "'input_ids' does not fit"),
        ({**GOOD, "input_ids": ["a", "b", "c"]}, "'input_ids' does not fit"),
        ({**GOOD, "input_ids": [2**70, 1, 1]}, "'input_ids' does not fit"),
        ({**GOOD, "input_ids": None}, "'input_ids' does not fit"),
        ({**GOOD, "input_ids": {"a": 1}}, "'input_ids' does not fit"),
        ({**GOOD, "input_ids": []}, "'input_ids' does not fit"),
        ({**GOOD, "input_ids": [[1, 2], [3]]}, "'input_ids' does not fit"),
        ({**GOOD, "input_ids": [1, 2, 3, 4]}, "do not agree"),
        ({name: [row, row] for name, row in GOOD.items()}, "one example"),
        ({name: [1] * 129 for name in GOOD}, "too long"),
    ],
)
def test_what_does_not_fit_is_refused(model: ServedModel, arrays: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        model.request(arrays)


@pytest.mark.parametrize("budget", [0, 9, "3", True, {"masklora": 0.5}, {"ccm": 9}, [3]])
def test_budgets_out_of_range_are_refused(model: ServedModel, budget: Any) -> None:
    with pytest.raises(BudgetError):
        model.request(GOOD, budget)


def test_the_longest_text_is_the_models_or_the_callers(session: Any, served_folder: Path) -> None:
    for longest, taken in ((None, 128), (16, 16), (500, 128)):
        model = served_model(str(served_folder), session, ServeOptions(longest=longest))
        assert model.longest == taken
        assert model.request({name: [1] * taken for name in GOOD}).length == taken


def test_a_request_says_what_its_budget_is_worth(model: ServedModel) -> None:
    assert model.spent(model.request(GOOD)) == {"ccm": 2.0}
    assert model.spent(model.request(GOOD, {"ccm": 3.5})) == {"ccm": 3.5}
    two = replace(model, exported={"ccm": 2, "tspeft": 0.4})
    assert two.spent(two.request(GOOD)) == {"ccm": 2.0}


def test_the_description_is_json(model: ServedModel) -> None:
    found = json.loads(json.dumps(model.described()))
    assert found["inputs"]["input_ids"] == {"dtype": "int64", "shape": ["batch", "sequence"]}
    assert found["budgets"] == {"ccm": {"least": 1.0, "most": 4.0, "unit": "ranks"}}


def test_the_probe_is_a_request_that_runs(model: ServedModel, session: Any) -> None:
    assert np.isfinite(session.run(model.probe().arrays)["logits"]).all()
    assert replace(model, longest=3).probe().length == 3


def test_models_of_other_shapes_are_refused(session: Any, served_folder: Path) -> None:
    class Odd:
        manifest = session.manifest
        inputs: tuple[TensorSpec, ...] = session.inputs
        outputs: tuple[TensorSpec, ...] = session.outputs

    picture = TensorSpec("pixels", np.dtype("float32"), ("batch", 3, 32, 32))
    summary = TensorSpec("mean", np.dtype("float32"), ())
    answer = TensorSpec("decoder_input_ids", np.dtype("int64"), ("batch", "answer"))
    for inputs, outputs in [
        ((picture,), session.outputs),
        ((*session.inputs, answer), session.outputs),
        (session.inputs, (*session.outputs, summary)),
    ]:
        odd: Any = Odd()
        odd.inputs, odd.outputs = inputs, outputs
        with pytest.raises(InputError, match="cannot be served"):
            served_model(str(served_folder), odd, ServeOptions())


def test_only_models_over_whole_texts_are_opened(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError):
        open_session(str(tmp_path), ServeOptions())
    facts = {"methods": {}, "budget": 1, "inputs": [], "outputs": [], "axes": {}}
    for kind, backend in (("decoder", "onnxruntime"), ("gates", None), ("model", "tensorrt")):
        folder = tmp_path / f"{kind}-{backend}"
        with ArtifactWriter(folder) as writer:
            writer.commit({"kind": kind, "backend": backend, **facts})
        with pytest.raises(InputError, match="whole texts") as caught:
            open_session(str(folder), ServeOptions())
        assert f"a {kind} for {backend}" in caught.value.given


def test_a_replica_needs_no_torch(served_folder: Path) -> None:
    code = (
        "import sys; from gatefx.runtime.serving.options import ServeOptions as O;"
        "from gatefx.runtime.serving.served_model import open_session, served_model;"
        "from gatefx.runtime.serving.answering import answers;"
        "s = open_session(sys.argv[1], O()); m = served_model(sys.argv[1], s, O());"
        "assert isinstance(answers(s, m, [m.probe()], width=1, most=1)[0][0], dict);"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, served_folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
