from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv, statically_known_true

from gatefx.errors import InputError
from gatefx.runtime.ops.reference_tokens import (
    gather_tokens_reference,
    scatter_tokens_reference,
    select_tokens_reference,
)
from gatefx.runtime.ops.token_ops import gather_tokens, scatter_tokens, select_tokens

SHAPES = [(3, 7), (3, 7, 4), (3, 2, 7, 7), (3, 2, 7, 1, 4), (6, 2, 7), (1, 7), (1, 2, 7, 4)]
"""Of states with B = 3 examples, or 2 * B rows, or one row for all; the token axes are those of size 7."""


def selection(lengths: int = 7, counts: tuple[int, ...] = (2, 4, 1), seed: int = 0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return select_tokens(torch.randn(len(counts), lengths), torch.tensor(counts))


@st.composite
def ranked_tokens(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Priorities with many ties, infinities too, and ragged counts; also batches of none."""
    examples, length = draw(st.integers(0, 4)), draw(st.integers(1, 6))
    values = st.sampled_from([-float("inf"), -1.0, -0.0, 0.0, 0.5, float("inf")])
    priority = draw(st.lists(values, min_size=examples * length, max_size=examples * length))
    counts = draw(st.lists(st.integers(0, length), min_size=examples, max_size=examples))
    return torch.tensor(priority).view(examples, length), torch.tensor(counts, dtype=torch.int64)


@settings(deadline=None, max_examples=60)
@given(ranked_tokens())
def test_selection_is_that_of_the_reference(ranked: tuple[Tensor, Tensor]) -> None:
    indices, valid = select_tokens(*ranked)
    meant_indices, meant_valid = select_tokens_reference(*ranked)
    assert torch.equal(indices, meant_indices)
    assert torch.equal(valid, meant_valid)


def test_selection_by_hand() -> None:
    priority = torch.tensor([[0.1, 0.9, 0.9, 0.5], [0.0, 0.0, 0.0, 0.0]])
    indices, valid = select_tokens(priority, torch.tensor([3, 1]))
    assert indices.tolist() == [[1, 2, 3], [0, 1, 2]]
    assert valid.tolist() == [[True, True, True], [True, False, False]]


def test_keeping_all_tokens_lists_them_in_order() -> None:
    indices, valid = selection(counts=(7, 7))
    assert indices.tolist() == [list(range(7))] * 2
    assert valid.all()


@settings(deadline=None, max_examples=40)
@given(shape=st.sampled_from(SHAPES), counts=st.tuples(*[st.integers(1, 7)] * 3), seed=st.integers(0, 99))
def test_gathering_is_that_of_the_reference(shape: tuple[int, ...], counts: tuple[int, ...], seed: int) -> None:
    indices, _ = selection(counts=counts, seed=seed)
    x = torch.randn(shape)
    for dim in [axis for axis, size in enumerate(shape) if size == 7]:
        meant = gather_tokens_reference(x, indices, dim)
        assert torch.equal(gather_tokens(x, indices, dim), meant)
        assert torch.equal(gather_tokens(x, indices, dim - len(shape)), meant)
        assert torch.equal(gather_tokens(x > 0, indices, dim), meant > 0)


def test_gathering_reads_views_of_any_layout() -> None:
    indices, _ = selection()
    x = torch.randn(7, 3, 4).transpose(0, 1)
    assert torch.equal(gather_tokens(x, indices, 1), gather_tokens_reference(x, indices, 1))
    mask = (torch.randn(3, 1, 1, 7) > 0).expand(-1, 2, 7, -1)
    assert torch.equal(gather_tokens(mask, indices, 3), gather_tokens_reference(mask, indices, 3))


@settings(deadline=None, max_examples=40)
@given(after=st.sampled_from([(), (4,), (2, 3)]), counts=st.tuples(*[st.integers(0, 7)] * 3), seed=st.integers(0, 99))
def test_scattering_is_that_of_the_reference(after: tuple[int, ...], counts: tuple[int, ...], seed: int) -> None:
    indices, valid = selection(counts=counts, seed=seed)
    x = torch.randn(3, indices.shape[1], *after)
    for fill in (0.0, torch.finfo(torch.float32).min):
        meant = scatter_tokens_reference(x, indices, valid, 7, fill)
        assert torch.equal(scatter_tokens(x, indices, valid, 7, fill), meant)


def test_scattering_undoes_gathering_on_kept_tokens() -> None:
    indices, valid = selection(counts=(7, 3, 1))
    x = torch.randn(3, 7, 4)
    kept = select_tokens_reference(torch.zeros(3, 7).scatter(1, indices, valid.float()), torch.tensor([7, 3, 1]))[1]
    back = scatter_tokens(gather_tokens(x, indices, 1), indices, valid, 7, 0.0)
    assert kept.sum() == 11
    assert torch.equal(back[0], x[0])
    assert (back != 0).any(2).sum(1).tolist() == [7, 3, 1]
    assert torch.equal(back[back != 0], x[back != 0])


def test_empty_batches_stay_empty() -> None:
    indices, valid = select_tokens(torch.zeros(0, 7), torch.zeros(0, dtype=torch.int64))
    assert indices.shape == valid.shape == (0, 1)
    kept = gather_tokens(torch.zeros(0, 7, 4), indices, 1)
    assert kept.shape == (0, 1, 4)
    assert scatter_tokens(kept, indices, valid, 7, 0.0).shape == (0, 7, 4)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradient_of_gathering(shape: tuple[int, ...]) -> None:
    indices, _ = selection()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    dim = shape.index(7)
    assert torch.autograd.gradcheck(lambda value: gather_tokens(value, indices, dim), x)


def test_gradient_of_scattering() -> None:
    indices, valid = selection()
    x = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda value: scatter_tokens(value, indices, valid, 7, 3.0), x)


def test_opcheck() -> None:
    indices, valid = selection()
    given_ = [
        (select_tokens, (torch.randn(3, 7, requires_grad=True), torch.tensor([2, 4, 1]))),
        (gather_tokens, (torch.randn(3, 7, 5, requires_grad=True), indices, 1)),
        (gather_tokens, (torch.randn(1, 2, 7, requires_grad=True), indices, -1)),
        (gather_tokens, (torch.randn(6, 2, 7) > 0, indices, 2)),
        (scatter_tokens, (torch.randn(3, 4, 5, requires_grad=True), indices, valid, 7, -1.0)),
    ]
    for operator, arguments in given_:
        verdicts = torch.library.opcheck(operator, arguments)
        assert set(verdicts.values()) == {"SUCCESS"}


def test_a_trace_names_the_number_of_kept_tokens_by_a_bounded_symbol() -> None:
    with FakeTensorMode(shape_env=ShapeEnv()) as mode:
        priority, counts = mode.from_tensor(torch.randn(3, 7)), mode.from_tensor(torch.tensor([2, 4, 1]))
        indices, valid = select_tokens(priority, counts)
        kept = indices.shape[1]
        assert valid.shape == indices.shape
        assert not isinstance(kept, int)
        assert statically_known_true(kept >= 1)
        assert statically_known_true(kept <= priority.shape[1])
        gathered = gather_tokens(mode.from_tensor(torch.randn(3, 2, 7)), indices, 2)
        assert statically_known_true(gathered.shape[2] == kept)


def test_a_trace_without_sizes_from_data_says_so() -> None:
    with FakeTensorMode() as mode:
        priority, counts = mode.from_tensor(torch.randn(3, 7)), mode.from_tensor(torch.tensor([2, 4, 1]))
        with pytest.raises(InputError, match="only known when the graph runs"):
            select_tokens(priority, counts)
        with pytest.raises(DynamicOutputShapeException):
            select_tokens(priority, counts)


def test_a_compiler_that_allows_no_size_from_data_breaks_the_graph_there() -> None:
    def shortened(x: Tensor, priority: Tensor, counts: Tensor) -> Tensor:
        indices, _ = select_tokens(priority * 2, counts)
        return gather_tokens(x, indices, 1) * 2

    given_ = (torch.randn(3, 7, 4), torch.randn(3, 7), torch.tensor([2, 4, 1]))
    compiled = torch.compile(shortened, backend="eager")
    assert torch.equal(compiled(*given_), shortened(*given_))


@pytest.mark.parametrize(
    ("operator", "arguments"),
    [
        (select_tokens, (torch.zeros(3, 7), torch.zeros(2, dtype=torch.int64))),
        (select_tokens, (torch.zeros(3, 7), torch.zeros(3, dtype=torch.int32))),
        (select_tokens, (torch.zeros(3, 7, dtype=torch.int64), torch.zeros(3, dtype=torch.int64))),
        (gather_tokens, (torch.zeros(4, 7), torch.zeros(3, 2, dtype=torch.int64), 1)),
        (gather_tokens, (torch.zeros(3, 7), torch.zeros(3, 2, dtype=torch.int64), 0)),
        (gather_tokens, (torch.zeros(3, 7), torch.zeros(3, 2, dtype=torch.int64), 2)),
        (gather_tokens, (torch.zeros(3, 7), torch.zeros(3, 2, dtype=torch.int32), 1)),
        (scatter_tokens, (torch.zeros(3, 2), torch.zeros(3, 3, dtype=torch.int64), torch.ones(3, 3) > 0, 7, 0.0)),
        (scatter_tokens, (torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.int64), torch.ones(3, 2), 7, 0.0)),
    ],
)
def test_tensors_that_do_not_fit_say_so(operator: torch.library.CustomOpDef, arguments: tuple[object, ...]) -> None:
    with pytest.raises(InputError, match="do not fit together"):
        operator(*arguments)


def test_a_count_above_the_length_says_so() -> None:
    with pytest.raises(InputError, match="more tokens than there are"):
        select_tokens(torch.zeros(2, 3), torch.tensor([1, 4]))
