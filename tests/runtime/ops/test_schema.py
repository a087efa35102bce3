from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gatefx.errors import InputError
from gatefx.runtime.ops.reference import gated_lora_reference
from gatefx.runtime.ops.schema import active_mask, gated_lora

Arguments = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def arguments(
    counts: tuple[int, ...],
    middle: tuple[int, ...],
    *,
    rank: int = 4,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Arguments:
    """Random arguments in which example b has counts[b] active directions."""
    torch.manual_seed(seed)
    d_in, d_out, examples = 6, 5, len(counts)
    indices = torch.full((examples, rank), -1)
    for example, count in enumerate(counts):
        indices[example, :count] = torch.randperm(rank)[:count]
    return (
        torch.randn(examples, *middle, d_out, dtype=dtype),
        torch.randn(examples, *middle, d_in, dtype=dtype),
        torch.randn(rank, d_in, dtype=dtype),
        torch.randn(d_out, rank, dtype=dtype),
        indices,
        torch.tensor(1.7, dtype=dtype),
    )


@settings(deadline=None, max_examples=60)
@given(
    counts=st.lists(st.integers(0, 4), min_size=1, max_size=5).map(tuple),
    middle=st.lists(st.integers(1, 4), max_size=3).map(tuple),
    seed=st.integers(0, 99),
)
def test_equals_the_dense_reference(counts: tuple[int, ...], middle: tuple[int, ...], seed: int) -> None:
    given_ = arguments(counts, middle, seed=seed)
    torch.testing.assert_close(gated_lora(*given_), gated_lora_reference(*given_), rtol=0, atol=1e-10)


def test_examples_that_share_their_directions_take_the_short_way_and_agree() -> None:
    base, x, lora_a, lora_b, _, scale = arguments((3, 3, 3), (4,))
    indices = torch.tensor([[2, 0, 3, -1]]).expand(3, -1)
    shared = (base, x, lora_a, lora_b, indices, scale)
    torch.testing.assert_close(gated_lora(*shared), gated_lora_reference(*shared), rtol=0, atol=1e-10)


def test_no_active_direction_is_the_base_bit_for_bit_and_no_alias() -> None:
    given_ = arguments((0, 0), (3,), dtype=torch.float32)
    result = gated_lora(*given_)
    assert torch.equal(result, given_[0])
    assert result.data_ptr() != given_[0].data_ptr()


def test_an_empty_batch_stays_empty() -> None:
    base, x, lora_a, lora_b, indices, scale = arguments((1, 2), (3,))
    assert gated_lora(base[:0], x[:0], lora_a, lora_b, indices[:0], scale).shape == (0, 3, 5)


@pytest.mark.parametrize("counts", [(1, 0, 4), (2, 2, 2), (0, 0, 0)])
@pytest.mark.parametrize("middle", [(), (3,), (2, 3)])
def test_gradients(counts: tuple[int, ...], middle: tuple[int, ...]) -> None:
    base, x, lora_a, lora_b, indices, scale = arguments(counts, middle)
    leaves = [value.requires_grad_() for value in (base, x, lora_a, lora_b, scale)]
    assert torch.autograd.gradcheck(lambda *f: gated_lora(*f[:4], indices, f[4]), leaves)


def test_opcheck() -> None:
    given_ = [value.requires_grad_() if value.is_floating_point() else value for value in arguments((1, 0, 4), (3,))]
    verdicts = torch.library.opcheck(gated_lora, tuple(given_))
    assert set(verdicts.values()) == {"SUCCESS"}


def test_compiles_without_a_graph_break() -> None:
    given_ = arguments((1, 0, 4), (3,))
    compiled = torch.compile(lambda *f: gated_lora(*f) * 2, backend="aot_eager", fullgraph=True, dynamic=True)
    torch.testing.assert_close(compiled(*given_), gated_lora(*given_) * 2)


def test_active_mask() -> None:
    assert active_mask(torch.tensor([[2, 0, -1], [-1, -1, -1]]), torch.float32).tolist() == [[1, 0, 1], [0, 0, 0]]


@pytest.mark.usefixtures("portable_operators")
@pytest.mark.parametrize(
    ("place", "replacement"),
    [
        (0, torch.zeros(3, 2, 7)),
        (1, torch.zeros(3, 9, 6)),
        (2, torch.zeros(3, 6)),
        (4, torch.zeros(3, 4, dtype=torch.int32)),
        (4, torch.zeros(2, 4, dtype=torch.int64)),
        (5, torch.ones(1)),
        (5, torch.tensor(1.0, dtype=torch.float64)),
    ],
)
def test_shapes_that_do_not_fit_say_so(place: int, replacement: Tensor) -> None:
    given_ = list(arguments((1, 2, 3), (2,), dtype=torch.float32))
    given_[place] = replacement
    with pytest.raises(InputError, match="do not fit together"):
        gated_lora(*given_)


def test_importing_the_package_defines_no_operator() -> None:
    program = "import torch, gatefx, gatefx.runtime.ops; print('gated_lora' in dir(torch.ops.gatefx))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
