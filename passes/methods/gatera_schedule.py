"""What moves GateRA's gates over a training run: the budget's multiplier, and what the last batch showed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ...models.gate_records import last_records
from ...models.modulation_objective import mean_entropy, mean_gate
from ..find.modulations import modulations_of
from .method import MethodSchedule

if TYPE_CHECKING:
    from ..gated import GatedModel


@dataclass(frozen=True)
class ModulationStep:
    """One training step of the gates, over real tokens and sites.

    Attributes:
        mean: mean g; entropy: mean H(g) in nats; open_share: share of gates with g ≥ θ; multiplier: λ.
    """

    step: int
    mean: float
    entropy: float
    open_share: float
    multiplier: float


class ModulationSchedule(MethodSchedule):
    """λ over a training run. Its state lives in the gates' buffers, so a resumed run goes on where it stopped.

    Args:
        model: the gated model.
    """

    def __init__(self, model: GatedModel) -> None:
        self.model = model
        self.history: list[ModulationStep] = []

    @torch.no_grad()
    def step(self) -> ModulationStep:
        """Observe the last batch and move λ towards the budget; call once per optimiser step."""
        gates = modulations_of(self.model.graph_module)
        records = last_records(gates)
        mean = float(mean_gate(records))
        for gate in gates:
            gate.observe(mean)
        first = gates[0]
        above = [((record.gate >= first.config.threshold) * record.real).sum() for record in records]
        row = ModulationStep(
            step=int(first.updates),
            mean=mean,
            entropy=float(mean_entropy(records)),
            open_share=float(torch.stack(above).sum() / torch.stack([record.count for record in records]).sum()),
            multiplier=float(first.multiplier),
        )
        self.history.append(row)
        return row

    def figures(self) -> Mapping[str, float]:
        """Mean gate, entropy, share of open gates, and the multiplier."""
        if not self.history:
            return {}
        row = self.history[-1]
        return {
            "gate_mean": row.mean,
            "gate_entropy": row.entropy,
            "gate_open_share": row.open_share,
            "gate_multiplier": row.multiplier,
        }
