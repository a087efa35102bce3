"""Triton kernels against what they mean. Run by `test_triton.py` in a process of its own: interpreted, or on a GPU."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from gatefx.runtime.ops.reference import gated_lora_reference
from gatefx.runtime.ops.reference_tokens import gather_tokens_reference, scatter_tokens_reference
from gatefx.runtime.ops.reference_updates import routed_linear_reference, token_gated_lora_reference
from gatefx.runtime.ops.triton_gated_lora import launch_gated_lora
from gatefx.runtime.ops.triton_routed_linear import launch_routed_linear
from gatefx.runtime.ops.triton_token_gated_lora import launch_token_gated_lora
from gatefx.runtime.ops.triton_tokens import launch_gather_tokens, launch_scatter_tokens

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
#: Largest error beside the largest value of the reference, which computes in float64.
BOUND: Mapping[torch.dtype, float] = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
DTYPES = list(BOUND)
#: Middle axes, d_in, d_out, r: one token, odd sizes, more tokens than a tile, exact tiles.
SHAPES = [((2, 1), 7, 5, 3), ((3, 37), 45, 67, 17), ((2, 2, 9), 33, 20, 16), ((1, 64), 64, 128, 64)]


def random(*shape: int, dtype: torch.dtype, by: float = 1.0) -> Tensor:
    return (torch.randn(shape) * by).to(dtype)


def on_device(launch: object, *arguments: object) -> Tensor:
    moved = [a.to(DEVICE) if isinstance(a, Tensor) else a for a in arguments]
    result: Tensor = launch(*moved)  # type: ignore[operator]
    return result.cpu()


def assert_near(found: Tensor, meant: Tensor) -> None:
    assert found.shape == meant.shape
    if found.numel():
        worst = float((found.double() - meant).abs().max())
        assert worst <= BOUND[found.dtype] * max(1.0, float(meant.abs().max())), worst


def ragged_indices(examples: int, rank: int, counts: list[int]) -> Tensor:
    """(B, r): the first counts[b] of a random order, then -1."""
    listed = torch.stack([torch.randperm(rank) for _ in range(examples)])
    kept = torch.tensor([min(counts[b % len(counts)], rank) for b in range(examples)])
    return torch.where(torch.arange(rank) < kept[:, None], listed, -1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("counts", [[0], [99], [0, 2, 1]], ids=["empty", "all", "ragged"])
def test_gated_lora(dtype: torch.dtype, shape: tuple[tuple[int, ...], int, int, int], counts: list[int]) -> None:
    middle, d_in, d_out, rank = shape
    base, x = random(*middle, d_out, dtype=dtype), random(*middle, d_in, dtype=dtype)
    a, b = random(rank, d_in, dtype=dtype, by=d_in**-0.5), random(d_out, rank, dtype=dtype, by=rank**-0.5)
    indices, scale = ragged_indices(middle[0], rank, counts), torch.tensor(-0.5, dtype=dtype)

    found = on_device(launch_gated_lora, base, x, a, b, indices, scale)

    assert_near(found, gated_lora_reference(*(t.double() for t in (base, x, a, b)), indices, scale.double()))
    shut = (indices < 0).all(1)
    assert torch.equal(found[shut].view(torch.uint8), base[shut].view(torch.uint8))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("threshold", [0.0, 0.5, 1e4], ids=["all", "some", "none"])
def test_token_gated_lora(dtype: torch.dtype, shape: tuple[tuple[int, ...], int, int, int], threshold: float) -> None:
    middle, d_in, d_out, rank = shape
    base, x = random(*middle, d_out, dtype=dtype), random(*middle, d_in, dtype=dtype)
    a, b = random(rank, d_in, dtype=dtype, by=d_in**-0.5), random(d_out, rank, dtype=dtype, by=rank**-0.5)
    # Updates well below or well above the threshold, so that no rounding turns a decision.
    x *= torch.where(torch.rand(*middle, 1) < 0.5, 0.01, 8.0).to(dtype)
    limit, scale = torch.tensor(threshold, dtype=dtype), torch.tensor(1.5, dtype=dtype)
    gram = (b.double().t() @ b.double()).to(dtype)

    found = on_device(launch_token_gated_lora, base, x, a, b, gram, limit, scale)

    doubles = [t.double() for t in (base, x, a, b, limit, scale)]
    meant = token_gated_lora_reference(*doubles)
    assert_near(found, meant)
    skipped = (meant == base.double()).all(-1)
    assert bool(skipped.all()) == (threshold > 1)
    assert torch.equal(found[skipped].view(torch.uint8), base[skipped].view(torch.uint8))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_routed_linear(dtype: torch.dtype, shape: tuple[tuple[int, ...], int, int, int], share: float) -> None:
    middle, d_in, d_out, rank = shape
    x, bias = random(*middle, d_in, dtype=dtype), random(d_out, dtype=dtype) if rank != 3 else None
    first, second = (random(d_out, d_in, dtype=dtype, by=d_in**-0.5) for _ in range(2))
    choice = torch.rand(middle) < share

    found = on_device(launch_routed_linear, x, first, second, bias, choice)

    wide = [None if t is None else t.double() for t in (x, first, second, bias)]
    assert_near(found, routed_linear_reference(*wide, choice))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [*DTYPES, torch.int64, torch.bool])
@pytest.mark.parametrize(("shape", "dim"), [((3, 11, 5), 1), ((1, 2, 11, 7), 2), ((6, 2, 4, 11), 3), ((3, 11, 130), 1)])
def test_gather_tokens(dtype: torch.dtype, shape: tuple[int, ...], dim: int) -> None:
    x = (torch.randn(shape) * 9).to(dtype)
    indices = torch.stack([torch.randperm(11)[:4].sort().values for _ in range(3)])
    assert torch.equal(on_device(launch_gather_tokens, x, indices, dim), gather_tokens_reference(x, indices, dim))


@pytest.mark.parametrize("dtype", [*DTYPES, torch.int64, torch.bool])
@pytest.mark.parametrize("kept", [1, 5, 11])
def test_scatter_tokens(dtype: torch.dtype, kept: int) -> None:
    x = (torch.randn(3, kept, 6) * 9).to(dtype)
    indices = torch.stack([torch.randperm(11)[:kept].sort().values for _ in range(3)])
    valid = torch.arange(kept) < torch.tensor([[0], [1], [kept]])
    arguments = x, indices, valid, 11, 1.0
    assert torch.equal(on_device(launch_scatter_tokens, *arguments), scatter_tokens_reference(*arguments))


def test_batches_of_nobody() -> None:
    nothing = torch.zeros(0, 4, 8)
    a, b, one = torch.zeros(4, 8), torch.zeros(8, 4), torch.tensor(1.0)
    indices, choice = torch.zeros(0, 4, dtype=torch.int64), torch.zeros(0, 4, dtype=torch.bool)
    assert on_device(launch_gated_lora, nothing, nothing, a, b, indices, one).shape == (0, 4, 8)
    assert on_device(launch_token_gated_lora, nothing, nothing, a, b, torch.eye(4), one, one).shape == (0, 4, 8)
    assert on_device(launch_routed_linear, nothing, b @ a, b @ a, None, choice).shape == (0, 4, 8)
