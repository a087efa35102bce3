from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from .cases import BOUNDS, error
from .linear_cases import LINEAR_SHAPES, LinearCase
from .linear_sessions import FED, RANK_GATED, ROUTED, TOKEN_GATED, WEIGHTS, fed, run, session
from .runs import all_equal_from_four_callers


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", FED)
@pytest.mark.parametrize("fixed", [(), WEIGHTS])
def test_layers_with_active_ranks_alone(
    native_folder: Path, isa: str, dtype: torch.dtype, fixed: tuple[str, ...], threads: int
) -> None:
    for seed, shape in enumerate(LINEAR_SHAPES):
        case = LinearCase(shape, dtype, seed)
        feed = fed(case)
        made = session(native_folder, RANK_GATED, feed, fixed, threads)
        answer = run(made, feed)
        assert error(answer, case.rank_gated()[1]) <= BOUNDS[dtype], shape
        shut = run(made, feed, indices=np.full_like(feed["indices"], -1))
        assert error(shut, case.layer) <= BOUNDS[dtype], shape
        idle = (case.tensors["indices"] >= 0).sum(1) == 0
        assert torch.equal(answer[idle], shut[idle])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("fixed", [(), WEIGHTS])
def test_tokens_take_their_update_or_stay(native_folder: Path, isa: str, fixed: tuple[str, ...], threads: int) -> None:
    for seed, shape in enumerate(LINEAR_SHAPES):
        case = LinearCase(shape, torch.float32, seed)
        feed = fed(case)
        made = session(native_folder, TOKEN_GATED, feed, fixed, threads)
        layer = run(made, feed, threshold=1e4)
        for limit in (0.0, 1e4, case.threshold()):
            answer, reference = run(made, feed, threshold=limit), case.token_gated(limit)
            assert error(answer, reference) <= BOUNDS[torch.float32], (shape, limit)
            stays = (reference == case.layer).all(-1)
            assert torch.equal(answer[stays], layer[stays])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", FED)
@pytest.mark.parametrize("fixed", [(), WEIGHTS])
def test_each_token_takes_its_weight(
    native_folder: Path, isa: str, dtype: torch.dtype, fixed: tuple[str, ...], threads: int
) -> None:
    for seed, shape in enumerate(LINEAR_SHAPES):
        case = LinearCase(shape, dtype, seed)
        feed = fed(case)
        made = session(native_folder, ROUTED, feed, fixed, threads)
        answer = run(made, feed)
        assert error(answer, case.routed()) <= BOUNDS[dtype], shape
        # Whatever its neighbours chose, a token's answer is the same to the bit.
        for choice in (False, True):
            alike = case.tensors["choice"] == choice
            assert torch.equal(run(made, feed, choice=np.full_like(feed["choice"], choice))[alike], answer[alike])


def test_a_token_does_not_depend_on_its_neighbours(native_folder: Path, isa: str) -> None:
    case = LinearCase((1, (53,), 130, 197, 7), torch.float32)
    feed = fed(case)
    made = session(native_folder, RANK_GATED, feed, WEIGHTS, 1)
    answer = run(made, feed)
    for token in (0, 1, 20, 52):
        assert torch.equal(run(made, feed, x=feed["x"][:, token : token + 1])[:, 0], answer[:, token])


@pytest.mark.parametrize("operator", [RANK_GATED, TOKEN_GATED])
def test_kernels_and_bodies_agree(native_folder: Path, operator: tuple[str, list[str]]) -> None:
    case = LinearCase((2, (50,), 96, 200, 64), torch.float32)
    feed = fed(case) | {"threshold": np.array(case.threshold(), np.float32)}
    native, portable = (run(session(folder, operator, feed, WEIGHTS, 1), feed) for folder in (native_folder, None))
    assert error(native, portable.double()) <= 2 * BOUNDS[torch.float32]


@pytest.mark.parametrize("operator", [RANK_GATED, TOKEN_GATED, ROUTED])
def test_four_callers_of_one_session(native_folder: Path, operator: tuple[str, list[str]]) -> None:
    case = LinearCase((3, (40,), 64, 96, 8), torch.float32)
    feeds = [fed(LinearCase(case.shape, torch.float32, seed)) for seed in range(4)]
    made = session(native_folder, operator, feeds[0], WEIGHTS, 2)
    assert all_equal_from_four_callers(made, feeds)


@pytest.mark.parametrize(
    ("operator", "name", "shape", "text"),
    [
        (RANK_GATED, "weight", (7, 4), "W is not"),
        (RANK_GATED, "bias", (6,), "bias is not"),
        (RANK_GATED, "lora_a", (3, 4), "A is not"),
        (RANK_GATED, "lora_b", (6, 3), "B is not"),
        (TOKEN_GATED, "gram", (2, 2), "G is not"),
        (ROUTED, "weight1", (6, 5), "W1 is not"),
        (ROUTED, "bias", (1,), "bias is not"),
    ],
)
def test_tensors_that_do_not_fit_are_a_status(
    native_folder: Path, operator: tuple[str, list[str]], name: str, shape: tuple[int, ...], text: str
) -> None:
    feed = {**fed(LinearCase((2, (3,), 5, 7, 3), torch.float32)), name: np.zeros(shape, np.float32)}
    # The model must not know the wrong shape, which onnxruntime's own checks would find first.
    made = session(native_folder, operator, feed, (), 1)
    with pytest.raises(Exception, match=text):
        run(made, feed)


def test_weights_that_are_no_matrices_are_refused_when_the_model_loads(native_folder: Path) -> None:
    feed = {**fed(LinearCase((2, (3,), 5, 7, 3), torch.float32)), "weight": np.zeros((7, 5, 1), np.float32)}
    with pytest.raises(Exception, match="must be matrices"):
        session(native_folder, RANK_GATED, feed, ("weight",), 1)
