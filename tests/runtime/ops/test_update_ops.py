"""The operators on updates: equal to what they mean on any choice of tokens and in every type, with gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gatefx.errors import InputError
from gatefx.runtime.ops.reference_updates import routed_linear_reference, token_gated_lora_reference
from gatefx.runtime.ops.update_ops import routed_linear, token_gated_lora

SHAPES = [(3,), (1, 4), (3, 5), (2, 3, 4)]


def lora_arguments(
    middle: tuple[int, ...],
    dtype: torch.dtype = torch.float64,
    threshold: float = 0.8,
    scale: float = 0.5,
    seed: int = 0,
) -> tuple[Tensor, ...]:
    """base, x, A, B, G, τ, s with d_in 6, d_out 7, r 3."""
    torch.manual_seed(seed)
    base, x = torch.randn(*middle, 7, dtype=torch.float64), torch.randn(*middle, 6, dtype=torch.float64)
    lora_a, lora_b = torch.randn(3, 6, dtype=torch.float64), torch.randn(7, 3, dtype=torch.float64)
    numbers = torch.tensor(threshold, dtype=torch.float64), torch.tensor(scale, dtype=torch.float64)
    return tuple(t.to(dtype) for t in (base, x, lora_a, lora_b, lora_b.t() @ lora_b, *numbers))


def routed_arguments(
    middle: tuple[int, ...], share: float = 0.5, dtype: torch.dtype = torch.float64, bias: bool = True, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:
    torch.manual_seed(seed)
    x, first, second = torch.randn(*middle, 6), torch.randn(7, 6), torch.randn(7, 6)
    offset = torch.randn(7).to(dtype) if bias else None
    return x.to(dtype), first.to(dtype), second.to(dtype), offset, torch.rand(middle) < share


def meant(arguments: tuple[Tensor, ...]) -> Tensor:
    base, x, lora_a, lora_b, _, threshold, scale = arguments
    return token_gated_lora_reference(base, x, lora_a, lora_b, threshold, scale)


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(SHAPES),
    st.sampled_from([0.0, 0.3, 0.8, 2.0, 1e9]),
    st.sampled_from([0.5, -2.0]),
    st.integers(0, 99),
)
def test_skipping_is_that_of_the_reference(middle: tuple[int, ...], threshold: float, scale: float, seed: int) -> None:
    arguments = lora_arguments(middle, threshold=threshold, scale=scale, seed=seed)
    torch.testing.assert_close(token_gated_lora(*arguments), meant(arguments), rtol=0, atol=1e-10)


def test_a_threshold_of_zero_is_the_plain_adapter_and_a_huge_one_the_base() -> None:
    base, x, lora_a, lora_b, gram, _, scale = lora_arguments((2, 5))
    base[0, 0] = 0
    zero, huge = torch.tensor(0.0).double(), torch.tensor(1e12).double()

    plain = base + scale * (x @ lora_a.t() @ lora_b.t())
    torch.testing.assert_close(token_gated_lora(base, x, lora_a, lora_b, gram, zero, scale), plain, rtol=0, atol=1e-10)
    base[0, 0] = 1
    shut = token_gated_lora(base, x, lora_a, lora_b, gram, huge, scale)
    assert torch.equal(shut, base)
    assert shut.data_ptr() != base.data_ptr()


def test_skipped_tokens_keep_the_bits_of_the_base() -> None:
    arguments = lora_arguments((2, 9), torch.float32)
    result, base = token_gated_lora(*arguments), arguments[0]
    skipped = (meant(arguments) == base).all(-1)
    assert bool(skipped.any())
    assert not bool(skipped.all())
    assert torch.equal(result[skipped], base[skipped])


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(SHAPES), st.sampled_from([0.0, 0.5, 1.0]), st.booleans(), st.integers(0, 99))
def test_routing_is_that_of_the_reference(middle: tuple[int, ...], share: float, bias: bool, seed: int) -> None:
    arguments = routed_arguments(middle, share, bias=bias, seed=seed)
    torch.testing.assert_close(routed_linear(*arguments), routed_linear_reference(*arguments), rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_types_agree(dtype: torch.dtype, tolerance: Mapping[torch.dtype, float]) -> None:
    routed = routed_arguments((3, 5), dtype=dtype)
    bound = tolerance[dtype] * 10
    torch.testing.assert_close(routed_linear(*routed), routed_linear_reference(*routed), rtol=0, atol=bound)
    # Thresholds apart from any ratio, so that rounding turns no decision.
    for threshold in (0.0, 1e6):
        arguments = lora_arguments((3, 5), dtype, threshold=threshold)
        torch.testing.assert_close(token_gated_lora(*arguments), meant(arguments), rtol=0.02, atol=bound)


def test_ratios_of_float16_are_judged_though_its_squares_are_infinite() -> None:
    """Answers of size 1,000 a feature, updates of 0.3 to 0.9 of them."""
    base = torch.full((1, 4, 64), 1000.0)
    updates = torch.tensor([[300.0, 500.0, 700.0, 900.0]]).unsqueeze(-1)
    lora_a, lora_b = torch.eye(1), torch.ones(64, 1)
    given_tensors = [base, updates, lora_a, lora_b, lora_b.t() @ lora_b, torch.tensor(0.6), torch.tensor(1.0)]
    result = token_gated_lora(*(tensor.half() for tensor in given_tensors))
    assert torch.equal(result[0, :, 0], torch.tensor([1000, 1000, 1700, 1900], dtype=torch.float16))


@pytest.mark.parametrize("middle", SHAPES)
def test_operators_pass_torch_s_own_checks(middle: tuple[int, ...]) -> None:
    lora = [t.requires_grad_() if i not in (4, 5) else t for i, t in enumerate(lora_arguments(middle))]
    torch.library.opcheck(token_gated_lora, tuple(lora))
    x, first, second, bias, choice = routed_arguments(middle)
    torch.library.opcheck(routed_linear, (x.requires_grad_(), first.requires_grad_(), second, bias, choice))
    torch.library.opcheck(routed_linear, (x, first, second, None, choice))


def test_gradients_are_those_of_the_dense_form() -> None:
    lora = [t.requires_grad_() if i not in (4, 5) else t for i, t in enumerate(lora_arguments((2, 4)))]
    assert torch.autograd.gradcheck(token_gated_lora, lora)
    x, first, second, bias, choice = routed_arguments((2, 4))
    assert bias is not None
    given_tensors = tuple(t.requires_grad_() for t in (x, first, second, bias))
    assert torch.autograd.gradcheck(lambda *t: routed_linear(*t, choice), given_tensors)


@pytest.mark.usefixtures("portable_operators")
@pytest.mark.parametrize(
    ("operator", "arguments", "position", "wrong"),
    [
        (token_gated_lora, lora_arguments((2, 4)), 4, torch.ones(3, 2, dtype=torch.float64)),
        (token_gated_lora, lora_arguments((2, 4)), 5, torch.ones(1, dtype=torch.float64)),
        (token_gated_lora, lora_arguments((2, 4)), 1, torch.ones(2, 4, 5, dtype=torch.float64)),
        (token_gated_lora, lora_arguments((2, 4)), 1, torch.ones(2, 4, 6)),
        (routed_linear, routed_arguments((2, 4)), 4, torch.ones(2, 4)),
        (routed_linear, routed_arguments((2, 4)), 4, torch.ones(2, 4, 1, dtype=torch.bool)),
        (routed_linear, routed_arguments((2, 4)), 2, torch.ones(8, 6, dtype=torch.float64)),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    operator: Callable[..., Tensor], arguments: tuple[Tensor, ...], position: int, wrong: Tensor
) -> None:
    given_tensors = list(arguments)
    given_tensors[position] = wrong
    with pytest.raises(InputError, match="do not fit together"):
        operator(*given_tensors)
