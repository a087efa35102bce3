"""Fit MaskLoRA's gates without training the model: predictors, by least squares, on the scores of the full forward.

The relaxed gate's a and b are left as they are: the deployed choice ranks tokens, and no monotone function of their
scores changes a rank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...models.configs.masklora import MaskLoRA
from ...models.hard_token_gate import HardTokenGate
from ...models.token_gate import TokenGate
from ..chain import Chain
from ..gate.token_scores import token_gates
from ..harden.distill import mean_divergence, student_and_teacher
from ..harden.freeze import FreezeRegularization
from ..harden.token_calibration import calibrate_cuts
from ..harden.token_gate import HardenTokenGates
from .masklora_deploy import UNIT, full_answers, keep_predictors, predictors_of, scores_of
from .method import Batches, FitQuality

if TYPE_CHECKING:
    from ..gated import GatedModel


def fit_gates(model: GatedModel, config: MaskLoRA, data: Batches, *, steps: int, show: bool | None) -> FitQuality:
    """Fit every gate in place, cut after cut, with the model's other gates open."""
    student, teacher = student_and_teacher(model, config.method)
    scores = scores_of(full_answers(student, data, show=show), config)

    def harden(gate: TokenGate) -> HardTokenGate:
        return HardTokenGate(gate, config=config)

    frozen = Chain(student).then(FreezeRegularization())
    masked = frozen.then(HardenTokenGates(float(model.methods[config.method].budget or 1), harden)).graph
    cuts = calibrate_cuts(masked, data, scores, select="topk", steps=steps, show=show)
    gates = [gate for _, gate in token_gates(model.graph_module)]
    keep_predictors(gates, predictors_of(masked))
    for gate in gates:
        gate.updates.fill_(1)
    return FitQuality(config.method, steps, mean_divergence(masked, teacher, data), cuts[-1].share, UNIT)
