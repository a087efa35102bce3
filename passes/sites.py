"""What became of each adapter site of a deployed model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace


@dataclass(frozen=True)
class DeployedSite:
    """One adapter site of a deployed model.

    Attributes:
        form: "gathered", "masked", "lora" (no gate, or one that turned static), "merged" (folded into the layer's
            weight), "skipping" (tokens below the threshold skip B), "routed" (each token through one of two weights),
            "hira", "added" (adapters of other kinds, whole), "dropped" (gone from the graph).
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


def sites_at(sites: tuple[DeployedSite, ...], budgets: Mapping[str, float | None]) -> tuple[DeployedSite, ...]:
    """The sites under budgets for which they were not measured one by one: each gated one gets the mean.

    Args:
        sites: as calibrated; budgets: by method, ranks for "ccm", shares of tokens for "tspeft" and "gatera".
    """
    ranks, shares = budgets.get("ccm"), [budgets.get(name) for name in ("tspeft", "gatera")]
    share = next((value for value in shares if value is not None), None)
    token_forms = _TOKEN_FORMS if ranks is not None else (*_TOKEN_FORMS, "masked")
    rows = []
    for site in sites:
        if site.form in _RANK_FORMS and ranks is not None:
            rows.append(replace(site, mean_rank=min(ranks, site.rank)))
        elif site.form in token_forms and share is not None:
            rows.append(replace(site, update_share=share))
        else:
            rows.append(site)
    return tuple(rows)


_RANK_FORMS = ("gathered", "masked")
_TOKEN_FORMS = ("skipping", "routed")
