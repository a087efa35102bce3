"""How the native kernels keep a layer's weights: panels of outputs, whatever the instruction set.

    weight (d_out, d_in)  →  panels (P, d_in, 16)     output 16 p + j of input i at [p, i, j], P = ⌈d_out / 16⌉
    bias   (d_out,)       →  row    (16 P,)
    B      (d_out, r)     →  rows   (r, 16 P)         one row per direction

What is past d_out is zero. `kPanel` of runtime/native/kernels/table.h is the same 16.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

PANEL = 16


def panels_of(weight: Tensor) -> Tensor:
    """A layer's weight (d_out, d_in) as panels (P, d_in, 16)."""
    filled = functional.pad(weight, (0, 0, 0, _missing(weight.shape[0])))
    return filled.reshape(-1, PANEL, weight.shape[1]).transpose(1, 2).contiguous()


def whole_row(bias: Tensor) -> Tensor:
    """A bias (d_out,) filled up to (16 P,)."""
    return functional.pad(bias, (0, _missing(bias.shape[0]))).contiguous()


def direction_rows(lora_b: Tensor) -> Tensor:
    """B (d_out, r) as rows (r, 16 P)."""
    return functional.pad(lora_b.t(), (0, _missing(lora_b.shape[0]))).contiguous()


def unpacked(panels: Tensor, d_out: int) -> Tensor:
    """The weight (d_out, d_in) that `panels_of` packed."""
    return torch.narrow(panels.transpose(1, 2).flatten(0, 1), 0, 0, d_out)


def _missing(size: int) -> int:
    return -size % PANEL
