from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from gatefx.runtime.ops.onnx_functions import DOMAIN, VERSION, function_protos

from .cases import BOUNDS, SHAPES, Case, error
from .runs import all_equal_from_four_callers, opened, run

RANK_GATED = ("GatedLora", ["base", "x", "lora_a", "lora_b", "indices", "scale"])
TOKEN_GATED = ("TokenGatedLora", ["base", "x", "lora_a", "lora_b", "gram", "threshold", "scale"])
FED = (torch.float32, torch.float64, torch.float16)


def session(
    folder: Path, operator: tuple[str, list[str]], feed: dict[str, np.ndarray], fixed: tuple[str, ...], threads: int
) -> Any:
    """A model of one node, as the exporter writes it; the tensors named in `fixed` are weights of the model.

    The base is what another node answers, so that the kernel may write its own answer there.
    """
    name, names = operator
    kinds = {key: helper.np_dtype_to_tensor_dtype(value.dtype) for key, value in feed.items()}
    open_axes = [f"a{axis}" for axis in range(feed["base"].ndim - 1)]
    axes = {"base": [*open_axes, feed["base"].shape[-1]], "x": [*open_axes, feed["x"].shape[-1]]}
    inputs = [
        helper.make_tensor_value_info(key, kinds[key], axes.get(key, feed[key].shape))
        for key in names
        if key not in fixed
    ]
    graph = helper.make_graph(
        [
            helper.make_node("Neg", ["base"], ["negative"]),
            helper.make_node("Neg", ["negative"], ["layer"]),
            helper.make_node(name, ["layer", *names[1:]], ["y"], domain=DOMAIN),
        ],
        "one_site",
        inputs,
        [helper.make_tensor_value_info("y", kinds["base"], axes["base"])],
        [numpy_helper.from_array(feed[key], key) for key in fixed],
    )
    model = helper.make_model(
        graph,
        functions=[function_protos(23)[name]],
        opset_imports=[helper.make_opsetid("", 23), helper.make_opsetid(DOMAIN, VERSION)],
        ir_version=10,
    )
    onnx.checker.check_model(model)
    return opened(model, folder, threads)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", FED)
@pytest.mark.parametrize("fixed", [(), ("lora_a", "lora_b", "scale")])
def test_active_ranks_alone(
    native_folder: Path, isa: str, dtype: torch.dtype, fixed: tuple[str, ...], threads: int
) -> None:
    for seed, shape in enumerate(SHAPES):
        case = Case(shape, dtype, seed)
        names, reference = case.rank_gated()
        feed = case.arrays(names)
        answer = run(session(native_folder, RANK_GATED, feed, fixed, threads), feed)
        assert error(answer, reference) <= BOUNDS[dtype], shape
        idle = (case.tensors["indices"] >= 0).sum(1) == 0
        assert torch.equal(answer[idle], case.tensors["base"][idle])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("fixed", [(), ("lora_a", "lora_b", "gram", "scale")])
def test_tokens_take_their_update_or_stay(native_folder: Path, isa: str, fixed: tuple[str, ...], threads: int) -> None:
    for seed, shape in enumerate(SHAPES):
        case = Case(shape, torch.float32, seed)
        feed = {**case.arrays([name for name in TOKEN_GATED[1] if name != "threshold"])}
        feed["threshold"] = np.zeros((), np.float32)
        made = session(native_folder, TOKEN_GATED, feed, fixed, threads)
        for limit in (0.0, 1e4, case.threshold()):
            answer = run(made, {**feed, "threshold": np.array(limit, np.float32)})
            reference = case.token_gated(limit)
            assert error(answer, reference) <= BOUNDS[torch.float32], (shape, limit)
            stays = (reference == case.wide("base")).all(-1)
            assert torch.equal(answer[stays], case.tensors["base"][stays])


def test_four_callers_of_one_session(native_folder: Path) -> None:
    feeds = []
    for seed in range(4):
        case = Case((3, (40,), 64, 96, 8), torch.float32, seed)
        feeds.append(case.arrays(RANK_GATED[1]))
    weights = ("lora_a", "lora_b", "scale")
    feeds = [{**feed, **{name: feeds[0][name] for name in weights}} for feed in feeds]
    made = session(native_folder, RANK_GATED, feeds[0], weights, 2)
    assert all_equal_from_four_callers(made, feeds)


@pytest.mark.parametrize(
    ("name", "shape", "text"),
    [("lora_a", (3, 4), "A is not"), ("lora_b", (6, 3), "B is not"), ("scale", (2,), "single numbers")],
)
def test_tensors_that_do_not_fit_are_a_status(
    native_folder: Path, name: str, shape: tuple[int, ...], text: str
) -> None:
    case = Case((2, (3,), 5, 7, 3), torch.float32)
    feed = {**case.arrays(RANK_GATED[1]), name: np.zeros(shape, np.float32)}
    made = session(native_folder, RANK_GATED, feed, (), 1)
    with pytest.raises(Exception, match=text):
        run(made, feed)


def test_matrices_that_are_none_are_refused_when_the_model_loads(native_folder: Path) -> None:
    case = Case((2, (3,), 5, 7, 3), torch.float32)
    feed = {**case.arrays(RANK_GATED[1]), "lora_b": np.zeros((7, 3, 1), np.float32)}
    with pytest.raises(Exception, match="must be matrices"):
        session(native_folder, RANK_GATED, feed, ("lora_b",), 1)
