"""Native packed layers in torch against float64: every shape, instruction set, 1 and 2 threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from gatefx.runtime.ops.packing import direction_rows, panels_of, whole_row

from .cases import BOUNDS, error
from .linear_cases import LINEAR_SHAPES, LinearCase

pytestmark = pytest.mark.usefixtures("isa")
TYPES = (torch.float32, torch.float64)


@pytest.fixture(params=[1, 2], autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def packed(case: LinearCase) -> dict[str, Any]:
    """The arguments of all three operators by name."""
    tensors = case.tensors
    return {
        **tensors,
        "panels": panels_of(tensors["weight"]),
        "panels1": panels_of(tensors["weight1"]),
        "row": whole_row(tensors["bias"]),
        "directions": direction_rows(tensors["lora_b"]),
        "d_out": case.shape[3],
    }


LAYER = ("panels", "row", "lora_a", "directions")
RANKS, ROUTED = (*LAYER, "indices", "scale", "d_out"), ("panels", "panels1", "row", "choice", "d_out")


def run(operator: Callable[..., Tensor], case: LinearCase, names: tuple[str, ...], x: Tensor | None = None) -> Tensor:
    given = packed(case)
    return operator(given["x"] if x is None else x, *(given[name] for name in names))


@pytest.mark.parametrize("dtype", TYPES)
def test_the_layer_with_its_active_ranks(dtype: torch.dtype) -> None:
    for seed, shape in enumerate(LINEAR_SHAPES):
        case = LinearCase(shape, dtype, seed)
        answer = run(torch.ops.gatefx_native.packed_gated_linear, case, RANKS)
        assert answer.dtype == dtype
        assert error(answer, case.rank_gated()[1]) <= BOUNDS[dtype], shape


@pytest.mark.parametrize("dtype", TYPES)
def test_the_layer_with_the_tokens_that_take_their_update(dtype: torch.dtype) -> None:
    for seed, shape in enumerate(LINEAR_SHAPES):
        case = LinearCase(shape, dtype, seed)
        given = packed(case)
        for limit in (0.0, 1e4, case.threshold()):
            answer = torch.ops.gatefx_native.packed_token_gated_linear(
                given["x"], *(given[name] for name in LAYER), given["gram"], torch.tensor(limit, dtype=dtype),
                given["scale"], given["d_out"],
            )  # fmt: skip
            assert error(answer, case.token_gated(limit)) <= BOUNDS[dtype], (shape, limit)


@pytest.mark.parametrize("dtype", TYPES)
def test_each_token_through_one_of_two_layers(dtype: torch.dtype) -> None:
    for seed, shape in enumerate(LINEAR_SHAPES):
        case = LinearCase(shape, dtype, seed)
        answer = run(torch.ops.gatefx_native.packed_routed_linear, case, ROUTED)
        assert error(answer, case.routed()) <= BOUNDS[dtype], shape


def test_a_token_does_not_depend_on_its_neighbours_or_the_layout() -> None:
    case = LinearCase((1, (53,), 130, 97, 7), torch.float32)
    operator, x = torch.ops.gatefx_native.packed_gated_linear, case.tensors["x"]
    answer = run(operator, case, RANKS)
    for token in (0, 1, 20, 52):
        assert torch.equal(run(operator, case, RANKS, x[:, token]), answer[:, token])
    assert torch.equal(run(operator, case, RANKS, x.mT.contiguous().mT), answer)


@pytest.mark.parametrize(
    ("name", "wrong", "text"),
    [
        ("panels", torch.zeros(1, 5, 8), "packed for 7 outputs"),
        ("panels", torch.zeros(2, 5, 16), "packed for 7 outputs"),
        ("row", torch.zeros(7), "packed for 7 outputs"),
        ("row", torch.zeros(16, dtype=torch.float64), "another type"),
        ("d_out", 17, "packed for 17 outputs"),
        ("d_out", 0, "packed for 0 outputs"),
        ("lora_a", torch.zeros(3, 4), r"A is not \(r, d_in\)"),
        ("lora_a", torch.zeros(1025, 5), "directions are not"),
        ("directions", torch.zeros(3, 7), "directions are not"),
        ("indices", torch.zeros(2, 3, dtype=torch.int32), "int64"),
        ("indices", torch.zeros(1, 3, dtype=torch.int64), "int64"),
        ("scale", torch.ones(2), "single number"),
    ],
)
def test_arguments_that_do_not_fit_are_an_error(name: str, wrong: Any, text: str) -> None:
    given = packed(LinearCase((2, (3,), 5, 7, 3), torch.float32)) | {name: wrong}
    with pytest.raises(RuntimeError, match=text):
        torch.ops.gatefx_native.packed_gated_linear(given["x"], *(given[key] for key in RANKS))


def test_a_routing_that_does_not_fit_is_an_error() -> None:
    case = LinearCase((2, (3,), 5, 7, 3), torch.float32)
    for name, wrong, text in (
        ("choice", torch.zeros(2, 2, dtype=torch.bool), "bool"),
        ("choice", torch.zeros(2, 3), "bool"),
        ("panels1", torch.zeros(1, 4, 16), "second panels"),
    ):
        given = packed(case) | {name: wrong}
        with pytest.raises(RuntimeError, match=text):
            torch.ops.gatefx_native.packed_routed_linear(given["x"], *(given[key] for key in ROUTED))


def test_half_precision_is_refused() -> None:
    case = LinearCase((2, (3,), 5, 7, 3), torch.bfloat16)
    with pytest.raises(RuntimeError, match="float32 and float64"):
        run(torch.ops.gatefx_native.packed_gated_linear, case, RANKS)
