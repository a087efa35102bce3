from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from .cases import BOUNDS, SHAPES, Case, error

pytestmark = pytest.mark.usefixtures("isa")


@pytest.fixture(params=[1, 2], autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", BOUNDS)
def test_active_ranks_alone_and_untouched_rows_to_the_bit(dtype: torch.dtype) -> None:
    for seed, shape in enumerate(SHAPES):
        case = Case(shape, dtype, seed)
        names, reference = case.rank_gated()
        given = [case.tensors[name] for name in names]
        answer = torch.ops.gatefx_native.gated_lora(*given)
        assert answer.dtype == dtype
        assert error(answer, reference) <= BOUNDS[dtype], shape
        idle = (case.tensors["indices"] >= 0).sum(1) == 0
        assert torch.equal(answer[idle], case.tensors["base"][idle])


@pytest.mark.parametrize("dtype", BOUNDS)
def test_tokens_take_their_update_or_stay_to_the_bit(dtype: torch.dtype) -> None:
    for seed, shape in enumerate(SHAPES):
        case = Case(shape, dtype, seed)
        given = [case.tensors[name] for name in ("base", "x", "lora_a", "lora_b", "gram")]
        limits = [0.0, 1e4] + ([case.threshold()] if dtype in (torch.float32, torch.float64) else [])
        for limit in limits:
            answer = torch.ops.gatefx_native.token_gated_lora(
                *given, torch.tensor(limit, dtype=dtype), case.tensors["scale"]
            )
            reference = case.token_gated(limit)
            assert error(answer, reference) <= BOUNDS[dtype], (shape, limit)
            stays = (reference == case.wide("base")).all(-1)
            assert torch.equal(answer[stays], case.tensors["base"][stays])


def test_a_token_does_not_depend_on_its_neighbours_or_the_layout() -> None:
    case = Case((1, (53,), 130, 97, 7), torch.float32)
    names, _ = case.rank_gated()
    base, x, *rest = (case.tensors[name] for name in names)
    answer = torch.ops.gatefx_native.gated_lora(base, x, *rest)
    for token in (0, 1, 20, 52):
        alone = torch.ops.gatefx_native.gated_lora(base[:, token], x[:, token], *rest)
        assert torch.equal(alone, answer[:, token])
    turned = torch.ops.gatefx_native.gated_lora(base.mT.contiguous().mT, x.mT.contiguous().mT, *rest)
    assert torch.equal(turned, answer)


def test_arguments_that_do_not_fit_are_an_error() -> None:
    case = Case((2, (3,), 5, 7, 3), torch.float32)
    names, _ = case.rank_gated()
    given = [case.tensors[name] for name in names]
    for place, wrong, text in (
        (0, given[0][:, :2], "do not agree"),
        (2, given[2][:, :4], r"A is not \(r, d_in\)"),
        (3, given[3][:6], r"B is not \(d_out, r\)"),
        (4, given[4].int(), "int64"),
        (4, given[4][:1], "int64"),
        (1, given[1].double(), "different types"),
        (5, torch.ones(2), "single number"),
    ):
        with pytest.raises(RuntimeError, match=text):
            torch.ops.gatefx_native.gated_lora(*given[:place], wrong, *given[place + 1 :])
    huge = torch.zeros(1025, 5), torch.zeros(7, 1025), torch.full((2, 1025), -1)
    with pytest.raises(RuntimeError, match="1024"):
        torch.ops.gatefx_native.gated_lora(*given[:2], *huge, given[5])
