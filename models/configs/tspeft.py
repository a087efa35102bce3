"""TS-PEFT's options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...config import AdapterConfig


@dataclass(frozen=True)
class TSPEFT(AdapterConfig):
    """Which tokens an adapter updates (TS-PEFT, §3). The adapter's own fields stand in `AdapterConfig`.

    Thresholds:
        step_scale: s of Eq. 20, how far one optimiser step moves τ at the start of the learning-rate schedule. The
            paper's 4e-5 is for instruction tuning; `NLU` has its 1e-4 for language understanding.
        sparsity_weight: λ of Eq. 15, per token that takes the update; the paper searches 1e-8 to 1e-3.
        momentum, decay: β₁ and β₂ of Eq. 16 and 17; epsilon: ε of Eq. 20.

    Budget (not in the paper):
        level_rate: how fast the level that all sites share follows the budget, as a share of the way per step.
    """

    method: ClassVar[str] = "tspeft"

    step_scale: float = 4e-5
    sparsity_weight: float = 1e-5
    momentum: float = 0.9
    decay: float = 0.98
    epsilon: float = 1e-8
    level_rate: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("step_scale", "epsilon"):
            self.check_number(field, least=0)
            if getattr(self, field) == 0:
                raise self.out_of_range(field, "more than 0")
        self.check_number("sparsity_weight", least=0)
        for field in ("momentum", "decay", "level_rate"):
            self.check_number(field, least=0, most=1)
        for field in ("momentum", "decay"):
            if getattr(self, field) == 1:
                raise self.out_of_range(field, "0 to less than 1")


#: The paper's step for language understanding (§A.4); `dataclasses.replace(NLU, rank=8)` changes other options.
NLU = TSPEFT(step_scale=1e-4)
