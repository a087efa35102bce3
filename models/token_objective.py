"""MaskLoRA's terms of the objective on the last batch, beside the task's (Eq. 2), and the predictor's least squares.

    λ·E‖m̃‖₀/T + γ·KL(full ‖ masked) + η·Σ ŝ(1 − m̃)/T
    + μ·(share − ρ) + penalty·(share − ρ)²            for every cut: the share expected, and the one to be kept
    + mean (log ŝ − predicted)²                       gradients reach the predictor alone

The sign of η is not the paper's: +η·ŝᵀm̃ would punish keeping tokens of high score, against its own Proposition 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .gate_records import last_records
from .token_gate import TokenGate, TokenRecord


def token_loss(gates: Sequence[TokenGate], divergence: Tensor | None) -> Tensor:
    """All terms but the task's, (); means over the cuts.

    Args:
        divergence: KL(full ‖ masked) on the batch, (); None leaves its term out.
    """
    records, config = last_records(gates), gates[0].config
    terms = [_cut_loss(gate, record) for gate, record in zip(gates, records, strict=True)]
    loss = torch.stack(terms).mean()
    return loss if divergence is None else loss + config.consistency * divergence


def _cut_loss(gate: TokenGate, record: TokenRecord) -> Tensor:
    config, share = gate.config, record.share
    excess = share - gate.share
    budget = gate.multiplier.to(share.dtype) * excess + config.penalty * excess.square()
    bound = config.concentration * record.dropped_score
    return config.sparsity * share + bound + budget + record.predictor_error
