"""What became of each adapter site of a deployed model."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class DeployedSite:
    """One adapter site of a deployed model.

    Attributes:
        form: "gathered", "masked", "lora" (no gate, or one that turned static), "merged" (folded into the layer's
            weight), "skipping" (tokens below the threshold skip B), "routed" (each token through one of two weights),
            "dropped" (gone from the graph).
        mean_rank: ranks computed per example on the calibration data, or all of them where none was given.
        update_share: share of real tokens that take the update on the calibration data; 1 where none is gated.
        gate_mean: mean of a soft gate on the calibration data; None where the site has none.
    """

    name: str
    d_in: int
    d_out: int
    rank: int
    form: str
    mean_rank: float
    update_share: float = 1.0
    gate_mean: float | None = None

    def to_json(self) -> dict[str, object]:
        """Plain data for an artifact's manifest."""
        return asdict(self)
