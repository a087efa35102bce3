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

from ..errors import UntrainedGateError
from .token_gate import TokenGate, TokenRecord


def token_records(gates: Sequence[TokenGate]) -> tuple[TokenRecord, ...]:
    """What the gates decided in their last call.

    Raises:
        UntrainedGateError: one was not called yet.
    """
    records = tuple(gate.record for gate in gates)
    if not records or any(record is None for record in records):
        raise UntrainedGateError("The gates have decided nothing yet.", remedy="call the model on a batch first")
    return tuple(record for record in records if record is not None)


def token_loss(gates: Sequence[TokenGate], divergence: Tensor | None) -> Tensor:
    """All terms but the task's, (); means over the cuts.

    Args:
        divergence: KL(full ‖ masked) on the batch, (); None leaves its term out.
    """
    records, config = token_records(gates), gates[0].config
    terms = [_cut_loss(gate, record) for gate, record in zip(gates, records, strict=True)]
    loss = torch.stack(terms).mean()
    return loss if divergence is None else loss + config.consistency * divergence


def _cut_loss(gate: TokenGate, record: TokenRecord) -> Tensor:
    config, share = gate.config, record.share
    excess = share - gate.share
    budget = gate.multiplier.to(share.dtype) * excess + config.penalty * excess.square()
    bound = config.concentration * record.dropped_score
    return config.sparsity * share + bound + budget + record.predictor_error
