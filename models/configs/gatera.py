"""GateRA's options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from ...config import AdapterConfig

Update = Literal["hira", "lora"]
Form = Literal["hard", "soft"]


@dataclass(frozen=True)
class GateRA(AdapterConfig):
    """Token-wise modulation of an adapter's update (GateRA). The adapter's own fields stand in `AdapterConfig`.

    Update:
        update: "hira" gates W0 ⊙ BA as the paper does, "lora" gates s·BA.
        alpha: None scales a HiRA update by 1, as its paper does, and a LoRA update by 2.

    Gate:
        gate_hidden: width of a hidden layer in the gate; 0 is the paper's σ(wᵀx + b).

    Deployment:
        gate: "hard" sends each token through one of two weights, "soft" keeps g.
        threshold: θ; without a budget a token takes the update where g ≥ θ.

    Objective:
        entropy_weight: β of +β·H(g), which pushes g to 0 and 1.
        penalty: ρ of the budget's terms λ·(mean g − budget) + ρ·(mean g − budget)², where there is a budget.
        penalty_rate: η_λ of the multiplier, λ ← λ + η_λ·(mean g − budget), which starts at 0.

    The paper names no values for θ and β, and has no budget.
    """

    method: ClassVar[str] = "gatera"
    deploy_fields: ClassVar[tuple[str, ...]] = ("gate", "threshold")

    update: Update = "hira"
    gate_hidden: int = 0
    gate: Form = "hard"
    threshold: float = 0.5
    entropy_weight: float = 0.01
    penalty: float = 5.0
    penalty_rate: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_choice("update", get_args(Update))
        self.check_choice("gate", get_args(Form))
        self.check_number("gate_hidden", least=0, whole=True)
        self.check_number("threshold", least=0, most=1)
        if self.threshold in (0, 1):
            raise self.out_of_range("threshold", "between 0 and 1, neither of them")
        for field in ("entropy_weight", "penalty", "penalty_rate"):
            self.check_number(field, least=0)

    @property
    def scale(self) -> float:
        """What an attached update is multiplied by."""
        if self.update == "hira" and self.alpha is None:
            return 1.0
        return self.scale_alpha / self.rank
