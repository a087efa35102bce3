"""The operators that let a graph run on chosen tokens: choose, gather along any axis, put back.

Axes: B examples, T tokens, K the most tokens that any example of the batch keeps (1 <= K <= T), * any axes.

    priority, counts ─▶ select_tokens ─▶ indices (B, K), valid (B, K)
    hidden (B, T, d)    ─▶ gather_tokens dim 1 ─▶ (B, K, d) ─▶ … ─▶ scatter_tokens ─▶ (B, T, d)
    mask   (B, 1, T, T) ─▶ gather_tokens dim 2, then 3 ─▶ (B, 1, K, K)

Only importing this module defines the operators.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DynamicOutputShapeException

from ...errors import InputError
from .argument_checks import misfit, sizes_agree
from .cpu_tokens import Shape, gathered_rows, gathered_shape, is_shared, scattered_rows, sorted_selection, summed_rows
from .cuda import cuda_gather_tokens, cuda_scatter_tokens
from .schema import NAMESPACE


class UnknownCountError(InputError, DynamicOutputShapeException):
    """`select_tokens` was traced where no size may depend on data. (A compiler that can breaks the graph there.)"""

    def __init__(self, problem: str, *, given: str = "", expected: str = "", remedy: str = "") -> None:
        super().__init__(problem, given=given, expected=expected, remedy=remedy)
        self.func = torch.ops.gatefx.select_tokens.default


class GatherContext(Protocol):
    """What the forward leaves for the backward of `gather_tokens`."""

    saved_tensors: tuple[Tensor]
    shape: Shape
    dim: int

    def save_for_backward(self, *tensors: Tensor) -> None:
        """Keep `tensors` until the backward has run."""


class ScatterContext(Protocol):
    """What the forward leaves for the backward of `scatter_tokens`."""

    saved_tensors: tuple[Tensor, Tensor]

    def save_for_backward(self, *tensors: Tensor) -> None:
        """Keep `tensors` until the backward has run."""


@torch.library.custom_op(f"{NAMESPACE}::select_tokens", mutates_args=())
def select_tokens(priority: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Each example's tokens of largest priority, in the order in which they stand.

    K = max(1, max(counts)) is a size that depends on data: traced, it is an unbacked symbol u with 1 <= u <= T.

    Args:
        priority: (B, T) floating point, no NaN. Of equal priorities the earlier position counts as larger.
        counts: (B,) int64, at most T. How many tokens to keep of each example; less than 1 keeps none of it.

    Returns:
        indices: (B, K) int64, the positions of the K largest priorities of each row, ascending.
        valid: (B, K) bool, true at the counts[b] positions of largest priority.

    Raises:
        InputError: tensors that do not fit together, or a count above T.
        UnknownCountError: traced under a fake mode without sizes that depend on data.
    """
    _check_selection(priority, counts)
    most = max(1, int(counts.max())) if counts.shape[0] else 1
    if most > priority.shape[1]:
        raise InputError(
            "select_tokens was asked for more tokens than there are.",
            given=f"a count of {most} for {priority.shape[1]} tokens",
        )
    return sorted_selection(priority, counts, most)


@select_tokens.register_fake
def _select_tokens_fake(priority: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    _check_selection(priority, counts)
    try:
        most = torch.library.get_ctx().new_dynamic_size(min=1)
    except DynamicOutputShapeException as error:
        raise UnknownCountError(
            "The number of tokens to keep is only known when the graph runs, and this trace allows no such size.",
            expected="torch.export, or a FakeTensorMode with a ShapeEnv whose allow_dynamic_output_shape_ops is true",
            remedy="with torch.compile, set torch._dynamo.config.capture_dynamic_output_shape_ops = True",
        ) from error
    torch._check(most <= priority.shape[1])  # type: ignore[no-untyped-call]
    shape = (priority.shape[0], most)
    return priority.new_empty(shape, dtype=torch.int64), priority.new_empty(shape, dtype=torch.bool)


def _check_selection(priority: Tensor, counts: Tensor) -> None:
    fits = (priority.dim(), counts.dim()) == (2, 1) and priority.is_floating_point() and counts.dtype == torch.int64
    if not fits or not sizes_agree([(priority.shape[0], counts.shape[0])]):
        raise misfit(
            "select_tokens",
            {"priority": priority, "counts": counts},
            "priority (B, T) of a floating-point type, counts (B,) int64",
        )


@torch.library.custom_op(f"{NAMESPACE}::gather_tokens", mutates_args=())
def gather_tokens(x: Tensor, indices: Tensor, dim: int) -> Tensor:
    """out[b, …, j, …] = x[b, …, indices[b, j], …], with j and the index on axis `dim`.

    A graph must spell an axis 0 of size 1 as the constant 1; a symbol is taken to be a batch.

    Args:
        x: (B, *, T, *) of any dtype. Axis 0 may be 1, read by every example, or c*B, of which the rows b*c … b*c+c-1
            belong to example b.
        indices: (B, K) int64, in range; looking at the values would cost a pass over them at every gather.
        dim: the axis to gather along, not axis 0; a negative one counts from the end.

    Returns:
        (B, *, K, *), or (c*B, *, K, *); contiguous.

    Raises:
        InputError: tensors that do not fit together, or a wrong axis.
    """
    return gathered_rows(x, indices, _checked_dim(x, indices, dim))


@gather_tokens.register_kernel("cuda")
def _gather_tokens_on_cuda(x: Tensor, indices: Tensor, dim: int) -> Tensor:
    return cuda_gather_tokens(x, indices, _checked_dim(x, indices, dim))


@gather_tokens.register_fake
def _gather_tokens_fake(x: Tensor, indices: Tensor, dim: int) -> Tensor:
    return x.new_empty(gathered_shape(x.shape, indices.shape, _checked_dim(x, indices, dim)))


def _checked_dim(x: Tensor, indices: Tensor, dim: int) -> int:
    """`dim` counted from the front, after all checks of `gather_tokens`."""
    positive = dim + x.dim() if dim < 0 else dim
    if x.dim() < 2 or indices.dim() != 2 or indices.dtype != torch.int64 or not 1 <= positive < x.dim():  # noqa: PLR2004
        raise misfit(
            f"gather_tokens on axis {dim}",
            {"x": x, "indices": indices},
            "x (B, *, T, *), indices (B, K) int64, and an axis of x other than axis 0",
        )
    if not is_shared(x.shape) and not _is_batch(x.shape[0], indices.shape[0]):
        raise misfit(
            "gather_tokens",
            {"x": x, "indices": indices},
            "x with an axis 0 of 1, B or c*B, where indices is (B, K)",
        )
    return positive


def _is_batch(rows: int, examples: int) -> bool:
    if not isinstance(rows, torch.SymInt) and not isinstance(examples, torch.SymInt):
        return rows % examples == 0 if examples else rows == 0
    torch._check(rows % examples == 0)
    return True


def _keep_for_gather(ctx: GatherContext, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:  # noqa: ARG001
    x, indices, dim = inputs
    ctx.save_for_backward(indices)
    ctx.shape = x.shape
    ctx.dim = dim + x.dim() if dim < 0 else dim


def _gather_tokens_backward(ctx: GatherContext, grad: Tensor) -> tuple[Tensor, None, None]:
    (indices,) = ctx.saved_tensors
    return summed_rows(grad, indices, ctx.dim, ctx.shape), None, None


gather_tokens.register_autograd(_gather_tokens_backward, setup_context=_keep_for_gather)


@torch.library.custom_op(f"{NAMESPACE}::scatter_tokens", mutates_args=())
def scatter_tokens(x: Tensor, indices: Tensor, valid: Tensor, length: int, fill: float) -> Tensor:
    """Undo `gather_tokens` on axis 1: out[b, indices[b, j]] = x[b, j] where valid[b, j], and `fill` elsewhere.

    Args:
        x: (B, K, *) of a dtype that can hold `fill`.
        indices: (B, K) int64, in range, no position twice in a row.
        valid: (B, K) bool.
        length: T, the number of tokens to come back to (a symbol of the graph where T varies).
        fill: the value at positions that no valid slot names.

    Returns:
        (B, T, *), contiguous.

    Raises:
        InputError: tensors that do not fit together.
    """
    _check_scatter(x, indices, valid)
    return scattered_rows(x, indices, valid, length, fill)


@scatter_tokens.register_kernel("cuda")
def _scatter_tokens_on_cuda(x: Tensor, indices: Tensor, valid: Tensor, length: int, fill: float) -> Tensor:
    _check_scatter(x, indices, valid)
    return cuda_scatter_tokens(x, indices, valid, length, fill)


@scatter_tokens.register_fake
def _scatter_tokens_fake(x: Tensor, indices: Tensor, valid: Tensor, length: int, fill: float) -> Tensor:  # noqa: ARG001
    _check_scatter(x, indices, valid)
    return x.new_empty((x.shape[0], length, *x.shape[2:]))


def _check_scatter(x: Tensor, indices: Tensor, valid: Tensor) -> None:
    dims_fit = x.dim() >= 2 and (indices.dim(), valid.dim()) == (2, 2)  # noqa: PLR2004
    types_fit = indices.dtype == torch.int64 and valid.dtype == torch.bool
    pairs = [*zip(x.shape[:2], indices.shape, strict=False), *zip(valid.shape, indices.shape, strict=False)]
    if not dims_fit or not types_fit or not sizes_agree(pairs):
        raise misfit(
            "scatter_tokens",
            {"x": x, "indices": indices, "valid": valid},
            "x (B, K, *), indices (B, K) int64, valid (B, K) bool",
        )


def _keep_for_scatter(
    ctx: ScatterContext,
    inputs: tuple[Tensor, Tensor, Tensor, int, float],
    output: Tensor,  # noqa: ARG001  (torch calls this by keyword)
) -> None:
    ctx.save_for_backward(inputs[1], inputs[2])


def _scatter_tokens_backward(ctx: ScatterContext, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
    indices, valid = ctx.saved_tensors
    kept = gathered_rows(grad, indices, 1)
    mask = valid.view(*valid.shape, *(1,) * (kept.dim() - 2))
    return torch.where(mask, kept, 0), None, None, None, None


scatter_tokens.register_autograd(_scatter_tokens_backward, setup_context=_keep_for_scatter)
