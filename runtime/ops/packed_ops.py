"""A frozen layer and its adapter over weights that were packed once: what the native kernels for torch run.

Axes: B examples, * any middle axes (none for a pooled state, T for tokens), d_in and d_out features, r rank directions,
P panels of 16 outputs (see `packing.py`).

    packed_gated_linear         gated_linear        (CCM-LoRA)
    packed_token_gated_linear   token_gated_linear  (TS-PEFT)
    packed_routed_linear        routed_linear       (GateRA)

Defined as those operators on the unpacked weights, which is also what runs where the native library does not. They are
made when a graph is lowered, so they have no gradient. Only importing this module defines them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .argument_checks import misfit
from .linear_ops import gated_linear, token_gated_linear
from .packing import PANEL, unpacked
from .schema import NAMESPACE
from .update_ops import routed_linear


def _packed_gated_linear(  # noqa: PLR0917  # tensors, in the order of the formula
    x: Tensor,
    panels: Tensor,
    bias: Tensor,
    lora_a: Tensor,
    directions: Tensor,
    indices: Tensor,
    scale: Tensor,
    d_out: int,
) -> Tensor:
    """`W x + b + scale * B[:, idx] A[idx, :] x`, example by example.

    Args:
        x: (B, *, d_in); panels: (P, d_in, 16) W; bias: (16 P,).
        lora_a: (r, d_in) A; directions: (r, 16 P) the columns of B.
        indices: (B, r) int64, the directions of each example, as in `gated_lora`.
        scale: () the adapter's alpha / r; d_out: outputs.

    Returns:
        (B, *, d_out), of the common dtype.

    Raises:
        InputError: shapes or dtypes that do not fit together.
    """
    weight = _weight(panels, bias, d_out)
    answer: Tensor = gated_linear(x, weight, bias[:d_out], lora_a, _turned(directions, d_out), indices, scale)
    return answer


packed_gated_linear = torch.library.custom_op(
    f"{NAMESPACE}::packed_gated_linear", _packed_gated_linear, mutates_args=()
)
# The composition says the shape too: its parts have fakes of their own.
packed_gated_linear.register_fake(_packed_gated_linear)


def _packed_token_gated_linear(  # noqa: PLR0913, PLR0917
    x: Tensor,
    panels: Tensor,
    bias: Tensor,
    lora_a: Tensor,
    directions: Tensor,
    gram: Tensor,
    threshold: Tensor,
    scale: Tensor,
    d_out: int,
) -> Tensor:
    """`y + scale * B A x` for the tokens where the update is at least τ·‖y‖, y = W x + b elsewhere.

    Args:
        x: (B, *, d_in); panels: (P, d_in, 16) W; bias: (16 P,).
        lora_a: (r, d_in) A; directions: (r, 16 P) the columns of B; gram: (r, r) BᵀB.
        threshold: () τ; scale: () the adapter's alpha / r; d_out: outputs.

    Returns:
        (B, *, d_out), of the common dtype.

    Raises:
        InputError: shapes or dtypes that do not fit together.
    """
    weight, lora_b = _weight(panels, bias, d_out), _turned(directions, d_out)
    answer: Tensor = token_gated_linear(x, weight, bias[:d_out], lora_a, lora_b, gram, threshold, scale)
    return answer


packed_token_gated_linear = torch.library.custom_op(
    f"{NAMESPACE}::packed_token_gated_linear", _packed_token_gated_linear, mutates_args=()
)
packed_token_gated_linear.register_fake(_packed_token_gated_linear)


def _packed_routed_linear(
    x: Tensor, panels0: Tensor, panels1: Tensor, bias: Tensor, choice: Tensor, d_out: int
) -> Tensor:
    """`W1 x + b` where `choice`, `W0 x + b` elsewhere.

    Args:
        x: (B, *, d_in); panels0, panels1: (P, d_in, 16) W0 and W1; bias: (16 P,).
        choice: (B, *) bool; d_out: outputs.

    Returns:
        (B, *, d_out), of the common dtype.

    Raises:
        InputError: shapes or dtypes that do not fit together.
    """
    weights = [_weight(panels, bias, d_out) for panels in (panels0, panels1)]
    answer: Tensor = routed_linear(x, *weights, bias[:d_out], choice)
    return answer


packed_routed_linear = torch.library.custom_op(
    f"{NAMESPACE}::packed_routed_linear", _packed_routed_linear, mutates_args=()
)
packed_routed_linear.register_fake(_packed_routed_linear)


def _weight(panels: Tensor, bias: Tensor, d_out: int) -> Tensor:
    """W (d_out, d_in), or why these are no packed layer of `d_out` outputs."""
    whole = -(-d_out // PANEL) * PANEL
    if panels.dim() != 3 or panels.shape[0] * panels.shape[2] != whole or bias.shape != (whole,):  # noqa: PLR2004
        raise misfit("A packed layer", {"panels": panels, "bias": bias}, f"(P, d_in, 16) and (16 P,), 16 P = {whole}")
    return unpacked(panels, d_out)


def _turned(directions: Tensor, d_out: int) -> Tensor:
    """B (d_out, r)."""
    return torch.narrow(directions, 1, 0, d_out).t()
