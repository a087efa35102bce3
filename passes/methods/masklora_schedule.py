"""What moves MaskLoRA's gates over a training run: the temperature, and the budget's multiplier at every cut."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ...models.gate_records import last_records
from ...models.token_gate import TokenGate
from ..gate.token_scores import token_gates
from .method import MethodSchedule

if TYPE_CHECKING:
    from ..gated import GatedModel


@dataclass(frozen=True)
class TokenStep:
    """One training step of the gates.

    Attributes:
        temperature: τ of the step; share: expected share of the tokens at the last cut.
        dropped_score: Σ ŝ(1 − m̃)/T there; predictor_error: mean squared error of log ŝ; multiplier: μ.
    """

    step: int
    temperature: float
    share: float
    dropped_score: float
    predictor_error: float
    multiplier: float


class TokenSchedule(MethodSchedule):
    """τ and μ over a training run. Its state lives in the gates' buffers, so a resumed run goes on where it stopped.

    Args:
        model: the gated model; total_steps: optimiser steps of the whole run.
    """

    def __init__(self, model: GatedModel, total_steps: int) -> None:
        self.model = model
        self.total_steps = total_steps
        self.history: list[TokenStep] = []

    @torch.no_grad()
    def step(self) -> TokenStep:
        """Observe the last batch and move τ and μ; call once per optimiser step."""
        gates = [gate for _, gate in token_gates(self.model.graph_module)]
        records = last_records(gates)
        for gate, record in zip(gates, records, strict=True):
            gate.multiplier.add_(gate.config.penalty_rate * (float(record.share) - gate.share))
            gate.updates.add_(1)
            gate.temperature.fill_(temperature_at(gate, self.total_steps))
        last, record = gates[-1], records[-1]
        row = TokenStep(
            step=int(last.updates),
            temperature=float(last.temperature),
            share=float(record.share),
            dropped_score=float(record.dropped_score),
            predictor_error=float(record.predictor_error),
            multiplier=float(last.multiplier),
        )
        self.history.append(row)
        return row

    def figures(self) -> Mapping[str, float]:
        """Share, dropped score, the predictor's error, temperature and multiplier."""
        if not self.history:
            return {}
        row = self.history[-1]
        return {
            "token_share": row.share,
            "token_dropped_score": row.dropped_score,
            "token_predictor_error": row.predictor_error,
            "token_temperature": row.temperature,
            "token_multiplier": row.multiplier,
        }


def temperature_at(gate: TokenGate, total_steps: int) -> float:
    """τ after `gate.updates` steps: linear from the config's start to its end."""
    done = min(int(gate.updates) / max(total_steps, 1), 1.0)
    config = gate.config
    return config.temperature + done * (config.temperature_min - config.temperature)
