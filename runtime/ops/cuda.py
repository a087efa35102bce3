"""The operators on CUDA tensors: the Triton kernel where there is one for the case, else the plain torch form.

Which of the two runs is never silent: `kernel_report` says it for every operator, type and rank, with the reason.
Triton is imported when the first CUDA tensor comes, and not before. It launches on the current device, wherever the
tensors are, so each launch says theirs.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from .cpu import gathered_gated_lora
from .cpu_tokens import gathered_rows, scattered_rows
from .cpu_updates import routed_rows, skipping_lora

KERNEL_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MOST_RANK = 64
OPERATORS = ("gated_lora", "token_gated_lora", "routed_linear", "gather_tokens", "scatter_tokens")
_MOST_EXAMPLES = 65_535
"""Of a launch of gated_lora: the second axis of a grid has no more. Larger batches take the plain torch form."""
_RANKED = ("gated_lora", "token_gated_lora")
_COPYING = ("gather_tokens", "scatter_tokens")


@dataclass(frozen=True)
class KernelReport:
    """Whether a CUDA tensor reaches a Triton kernel; if not, `why` says what is missing and plain torch answers."""

    operator: str
    active: bool
    why: str


def kernel_report(dtype: torch.dtype = torch.float16, rank: int = 16) -> tuple[KernelReport, ...]:
    """What runs for tensors of `dtype` and adapters of `rank`, for each operator that has a kernel."""
    reasons = {operator: _refusal(operator, dtype, rank) for operator in OPERATORS}
    if not torch.cuda.is_available():
        reasons = dict.fromkeys(OPERATORS, "no CUDA device")
    return tuple(KernelReport(operator, not why, why or "Triton kernel") for operator, why in reasons.items())


def _refusal(operator: str, dtype: torch.dtype, rank: int) -> str:
    """Why plain torch answers; empty if the kernel does."""
    if not _has_triton():
        return "triton is not installed (pip install 'gatefx[triton]')"
    if operator not in _COPYING and dtype not in KERNEL_DTYPES:
        return f"no kernel for {str(dtype).removeprefix('torch.')}"
    if operator in _RANKED and rank > MOST_RANK:
        return f"no kernel for rank {rank}, more than {MOST_RANK}"
    if operator in _COPYING and dtype.is_complex:
        return "no kernel for complex numbers"
    return ""


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def cuda_gated_lora(base: Tensor, x: Tensor, lora_a: Tensor, lora_b: Tensor, indices: Tensor, scale: Tensor) -> Tensor:
    """`gated_lora` (see `schema.py`)."""
    if _refusal("gated_lora", x.dtype, lora_a.shape[0]) or x.shape[0] > _MOST_EXAMPLES:
        return gathered_gated_lora(base, x, lora_a, lora_b, indices, scale)
    from .triton_gated_lora import launch_gated_lora

    with torch.cuda.device(x.get_device()):
        return launch_gated_lora(base, x, lora_a, lora_b, indices, scale)


def cuda_token_gated_lora(  # noqa: PLR0917  # the operator's tensors, in order
    base: Tensor, x: Tensor, lora_a: Tensor, lora_b: Tensor, gram: Tensor, threshold: Tensor, scale: Tensor
) -> Tensor:
    """`token_gated_lora` (see `update_ops.py`)."""
    if _refusal("token_gated_lora", x.dtype, lora_a.shape[0]):
        return skipping_lora(base, x, lora_a, lora_b, gram, threshold, scale)
    from .triton_token_gated_lora import launch_token_gated_lora

    with torch.cuda.device(x.get_device()):
        return launch_token_gated_lora(base, x, lora_a, lora_b, gram, threshold, scale)


def cuda_routed_linear(x: Tensor, weight0: Tensor, weight1: Tensor, bias: Tensor | None, choice: Tensor) -> Tensor:
    """`routed_linear` (see `update_ops.py`)."""
    if _refusal("routed_linear", x.dtype, 0):
        return routed_rows(x, weight0, weight1, bias, choice)
    from .triton_routed_linear import launch_routed_linear

    with torch.cuda.device(x.get_device()):
        return launch_routed_linear(x, weight0, weight1, bias, choice)


def cuda_gather_tokens(x: Tensor, indices: Tensor, dim: int) -> Tensor:
    """`gather_tokens` (see `token_ops.py`), dim >= 1."""
    if _refusal("gather_tokens", x.dtype, 0):
        return gathered_rows(x, indices, dim)
    from .triton_tokens import launch_gather_tokens

    with torch.cuda.device(x.get_device()):
        return launch_gather_tokens(x, indices, dim)


def cuda_scatter_tokens(x: Tensor, indices: Tensor, valid: Tensor, length: int, fill: float) -> Tensor:
    """`scatter_tokens` (see `token_ops.py`)."""
    if _refusal("scatter_tokens", x.dtype, 0):
        return scattered_rows(x, indices, valid, length, fill)
    from .triton_tokens import launch_scatter_tokens

    with torch.cuda.device(x.get_device()):
        return launch_scatter_tokens(x, indices, valid, length, fill)
