"""WeightLoRA's options."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from ...config import AdapterConfig


@dataclass(frozen=True)
class WeightLoRA(AdapterConfig):
    """Which adapters to keep at all (WeightLoRA, §2, §2.2). The adapter's own fields stand in `AdapterConfig`.

    Selection:
        plus: weightlora+: K is half of the sites, and each that stays doubles its rank: as many parameters as LoRA.
        warmup: share of the run during which the sites' weights ω are learned (§2: up to 0.5 %).
        least_warmup: at least so many steps, but never more than half of the run.
        omega_rate: how far the gradient step of StoIHT (appendix B) moves ω, in units of the gradient's root mean
            square over the sites: the paper names no step size, and this one does not depend on the loss's scale.
    """

    method: ClassVar[str] = "weightlora"

    plus: bool = False
    warmup: float = 0.005
    least_warmup: int = 5
    omega_rate: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_number("warmup", least=0, most=1)
        self.check_number("least_warmup", least=1, whole=True)
        self.check_number("omega_rate", least=0)
        if self.omega_rate == 0:
            raise self.out_of_range("omega_rate", "more than 0")
        if not isinstance(self.plus, bool):
            raise self.out_of_range("plus", "True or False")

    def warmup_steps(self, total_steps: int) -> int:
        """T, the steps after which the choice is made; a second step at least, as ω's first gradient is zero."""
        wanted = max(self.least_warmup, math.ceil(self.warmup * total_steps))
        return max(2, min(wanted, total_steps // 2))
