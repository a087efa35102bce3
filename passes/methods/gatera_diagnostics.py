"""What GateRA's gates do on data: the values that the paper's figure 1 shows, apart for prompts and single tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...models.modulation import Modulation, ModulationRecord
from ..find.modulations import find_modulated

if TYPE_CHECKING:
    from ..gated import GatedModel

Batches = Sequence[Mapping[str, Tensor]]


@dataclass(frozen=True)
class PhaseSummary:
    """One site's gates over the real tokens of one phase.

    Attributes:
        tokens: how many there were; mean: mean g; entropy: mean H(g) in nats; open_share: share with g ≥ θ.
    """

    tokens: int
    mean: float
    entropy: float
    open_share: float


@dataclass(frozen=True)
class ModulationDiagnostics:
    """Site → its gates, in the order of the graph; a phase without a call is left out.

    Attributes:
        prefill: calls with several tokens, or on a pooled state; decode: calls with a single token.
    """

    prefill: Mapping[str, PhaseSummary]
    decode: Mapping[str, PhaseSummary]


@torch.no_grad()
def modulation_diagnostics(model: GatedModel, data: Batches) -> ModulationDiagnostics:
    """Run `data` (labels are ignored) through the model in eval mode and describe its gates.

    Args:
        data: batches of prompts, of single tokens, or of both; each is counted to its own phase.
    """
    phases: dict[str, dict[str, list[ModulationRecord]]] = {"prefill": {}, "decode": {}}
    was_training = model.training
    model.eval()
    try:
        for batch in data:
            model.graph_module(*model.arrange(batch))
            for name, gate in _gates(model).items():
                phase = "decode" if gate.record is gate.decode else "prefill"
                if gate.record is not None:
                    phases[phase].setdefault(name, []).append(gate.record)
    finally:
        model.train(was_training)
    thresholds = {name: gate.config.threshold for name, gate in _gates(model).items()}
    summed = {
        phase: {name: _summary(records, thresholds[name]) for name, records in found.items()}
        for phase, found in phases.items()
    }
    return ModulationDiagnostics(**summed)


@torch.no_grad()
def token_gates(model: GatedModel, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Site → g of every token of a batch, (B, *), NaN at padding: one row of the paper's figure 1 each."""
    was_training = model.training
    model.eval()
    try:
        model.graph_module(*model.arrange(batch))
        records = {name: gate.record for name, gate in _gates(model).items()}
    finally:
        model.train(was_training)
    return {
        name: record.gate.masked_fill(record.real == 0, torch.nan)
        for name, record in records.items()
        if record is not None
    }


def _gates(model: GatedModel) -> dict[str, Modulation]:
    found = find_modulated(model.graph_module)
    return {item.site.name: item.module for item in found if isinstance(item.module, Modulation)}


def _summary(records: Sequence[ModulationRecord], threshold: float) -> PhaseSummary:
    tokens = float(sum(float(record.count) for record in records))
    share = max(tokens, 1.0)
    opened = sum(float(((record.gate >= threshold) * record.real).sum()) for record in records)
    return PhaseSummary(
        tokens=int(tokens),
        mean=sum(float(record.total_gate()) for record in records) / share,
        entropy=sum(float(record.total_entropy()) for record in records) / share,
        open_share=opened / share,
    )
