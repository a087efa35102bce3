"""What the operators' checks share: sizes that must be equal, and tensors put in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ...errors import InputError

Size = int | torch.SymInt


def sizes_agree(pairs: Iterable[tuple[Size, Size]]) -> bool:
    """Whether the sizes of each pair are equal; a size known only at run time is stated to be so instead."""
    return all(_same_size(left, right) for left, right in pairs)


def _same_size(left: Size, right: Size) -> bool:
    if isinstance(left, int) and isinstance(right, int):
        return left == right
    # A size that is only known when the graph runs: state the equality as a fact of the graph.
    torch._check(left == right)  # type: ignore[no-untyped-call]
    return True


def misfit(operator: str, tensors: Mapping[str, Tensor], expected: str) -> InputError:
    """The error for arguments of `operator` that do not fit together."""
    return InputError(f"{operator} got tensors that do not fit together.", given=_listed(tensors), expected=expected)


def _listed(tensors: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} {tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for name, t in tensors.items())
