"""The cheaper exact form of each routed site: all ranks and a mask, or only the active ranks, gathered.

Both compute the same routed update, so choosing never changes the function.
Source: CCM-LoRA section 2.6 (eq. 8) and appendix B.1 (masked computation without wasted matmuls, buckets).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import BudgetError, InputError, SiteError
from .cost_constants import EngineConstants
from .cost_model import Figures, Form, site_figures

TIE = 0.1
"""Differences below this share go to `masked`: it is the simpler graph, and predictions are no nearer than that."""


@dataclass(frozen=True)
class SiteShape:
    """One adapter site: W0 (d_out, d_in), A (rank, d_in), B (d_out, rank)."""

    name: str
    d_in: int
    d_out: int
    rank: int

    def __post_init__(self) -> None:
        _check_positive(self.name, SiteError, d_in=self.d_in, d_out=self.d_out, rank=self.rank)


@dataclass(frozen=True)
class RouterShape:
    """One router for all sites: Linear(pool_width, hidden), GELU, Linear(hidden, sites · max_rank)."""

    pool_width: int
    hidden: int
    sites: int
    max_rank: int

    def __post_init__(self) -> None:
        sizes = {"pool_width": self.pool_width, "hidden": self.hidden, "sites": self.sites, "max_rank": self.max_rank}
        _check_positive("router", InputError, **sizes)


@dataclass(frozen=True)
class Workload:
    """A typical batch: examples, and tokens per example (padding included: it is computed too)."""

    batch: int
    tokens: int

    def __post_init__(self) -> None:
        _check_positive("workload", InputError, batch=self.batch, tokens=self.tokens)


@dataclass(frozen=True)
class ActiveRank:
    """Active ranks of a site over calibration data.

    Attributes:
        mean: of k(x) over the examples: what the FLOP accounting of the paper counts.
        largest: mean over the batches of the batch's largest k(x): what a gathered batch really computes,
            since its examples are padded to the widest of them.
    """

    mean: float
    largest: float


@dataclass(frozen=True)
class FormChoice:
    """The cheaper exact form of one site, the predicted seconds of both, and why."""

    site: str
    form: Form
    masked_seconds: float
    gathered_seconds: float
    reason: str

    @property
    def seconds(self) -> float:
        """Predicted seconds of the chosen form, for one batch."""
        return self.masked_seconds if self.form is Form.MASKED else self.gathered_seconds


ActiveRanks = Mapping[str, ActiveRank | float]


def choose_forms(
    sites: Sequence[SiteShape], active_rank: ActiveRanks, workload: Workload, constants: EngineConstants
) -> tuple[FormChoice, ...]:
    """Per site, the cheaper of the two exact forms of a routed update.

    Args:
        sites: the routed sites.
        active_rank: by site name; a plain number stands for both the mean and the largest.
        workload: a typical batch.
        constants: of the engine that will run the graph.

    Raises:
        InputError: a site without an active rank.
        BudgetError: an active rank that is no number, negative, or above the site's rank.
    """
    ranks = {site.name: active_rank_of(site, active_rank) for site in sites}
    return tuple(choose_form(site, ranks[site.name], workload, constants) for site in sites)


def figures_of(form: Form, site: SiteShape, active: float, workload: Workload, constants: EngineConstants) -> Figures:
    """What `form` costs at `site` with `active` ranks computed."""
    return site_figures(form, (site.d_in, site.d_out, site.rank), active, (workload.batch, workload.tokens), constants)


def choose_form(site: SiteShape, active: ActiveRank, workload: Workload, constants: EngineConstants) -> FormChoice:
    """The cheaper exact form of one site."""
    # A gather of no ranks at all is no smaller graph than one of a single rank.
    slots = max(gathered_ranks(active, constants), 1.0)
    masked = figures_of(Form.MASKED, site, site.rank, workload, constants).seconds
    gathered = figures_of(gathered_form(constants), site, slots, workload, constants).seconds
    gain = 1 - gathered / masked
    if gain > TIE:
        reason = f"Gathering {slots:.3g} of {site.rank} ranks is predicted to take {gain:.0%} less time than masking."
        return FormChoice(site.name, Form.GATHERED, masked, gathered, reason)
    if gain >= -TIE:
        reason = f"Gathering and masking differ by less than {TIE:.0%}, and masking is the simpler graph."
    else:
        reason = f"Gathering {slots:.3g} of {site.rank} ranks is predicted to take {-gain:.0%} more time than masking."
    return FormChoice(site.name, Form.MASKED, masked, gathered, reason)


def gathered_form(constants: EngineConstants) -> Form:
    """What gathering the active ranks is on an engine."""
    return Form.FUSED if constants.fused else Form.GATHERED


def gathered_ranks(active: ActiveRank, constants: EngineConstants) -> float:
    """Ranks that the gathered form computes: as many as the batch's widest example has, or each example its own."""
    return active.mean if constants.fused else active.largest


def active_rank_of(site: SiteShape, ranks: ActiveRanks) -> ActiveRank:
    """The site's entry in `ranks`, checked.

    Raises:
        InputError, BudgetError: see `choose_forms`.
    """
    if site.name not in ranks:
        raise InputError(
            f"No active rank is given for site {site.name!r}.",
            given=f"active ranks of {len(ranks)} sites",
            expected="one entry for every site",
            remedy="calibrate the gates first, or pass one number for all sites to predict()",
        )
    given = ranks[site.name]
    active = given if isinstance(given, ActiveRank) else ActiveRank(given, given)
    # Written so that NaN fails too.
    if not (0 <= active.mean <= active.largest <= site.rank):
        raise BudgetError(
            f"The active rank of site {site.name!r} is out of range.",
            given=f"mean {active.mean}, largest {active.largest}",
            expected=f"0 <= mean <= largest <= {site.rank} (the site's rank)",
        )
    return active


def _check_positive(what: str, error: type[InputError] | type[SiteError], **sizes: int) -> None:
    wrong = {name: size for name, size in sizes.items() if not size >= 1}
    if wrong:
        given = ", ".join(f"{name}={size}" for name, size in wrong.items())
        raise error(f"{what}: a size is below one.", given=given, expected="whole numbers from 1 up")
