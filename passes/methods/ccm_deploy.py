"""CCM-LoRA, deployed: trained routers → hard decisions → the cheaper exact form at every site.

    harden    (scores on calibration data) → HardenRankRouters
    compact   FreezeStaticGates → FoldAdapters → CompactRanks where gathering is cheaper

The cost model chooses between forms of one function; it never changes the function, it only says in the report where
routing cannot pay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, fx

from ...models.configs.ccm import CCM
from ...models.gates import HardRankRouter, RankRouter
from ...runtime.native.library import native_status
from ..chain import Chain
from ..compact.ranks import CompactRanks
from ..cost import (
    ActiveRank,
    EngineConstants,
    Form,
    RouterShape,
    SiteShape,
    Workload,
    choose_forms,
    default_constants,
    predict,
)
from ..decision import Decision, RuntimeBudget
from ..find.adapters import AdapterSite, find_sites
from ..graph.edit import shape_of
from ..harden.calibrate import Calibration, calibrate, collect_scores
from ..harden.rank_router import LEVEL, HardenRankRouters
from ..harden.static_gates import FreezeStaticGates, open_every_gate
from ..simplify.fold_adapters import FoldAdapters
from .ccm_schedule import routers_of
from .method import DeployOptions

_TOKEN_AXES = 3


@dataclass(frozen=True)
class RankDecision(Decision):
    """What hardening decided about ranks.

    Attributes:
        calibration: level and rank distribution on the calibration data; None without data or without routers.
        site_ranks: mean deployed k by site, where it was measured.
        forms: the form chosen for every routed site.
        static: sites whose gate never varies, with the rank directions that stay.
        kept_masked: sites that stay masked, each with why gathering was declined.
    """

    calibration: Calibration | None = None
    site_ranks: Mapping[str, float] = field(default_factory=dict)
    forms: Mapping[str, str] = field(default_factory=dict)
    static: tuple[tuple[str, tuple[int, ...]], ...] = ()
    kept_masked: tuple[tuple[str, str], ...] = ()


def keep_every_rank(chain: Chain, budget: float, *, fold: bool) -> tuple[Chain, RankDecision]:
    """A budget that keeps every rank: no router is left, and the graph is the plain adapters' bit for bit."""
    opened = chain.then(open_every_gate(chain.graph))
    notes = ["the budget keeps every rank, so nothing is routed"]
    if not fold:
        notes.append("pass fold=True to merge the adapters into the weights, which makes them free")
    ranks = {site.name: float(site.rank) for site in find_sites(opened.graph)[0]}
    return opened, RankDecision(budget, budget, notes=tuple(notes), site_ranks=ranks)


def harden_ranks(
    chain: Chain, config: CCM, budget: float, data: Sequence[Mapping[str, Tensor]] | None, options: DeployOptions
) -> tuple[Chain, RankDecision]:
    """Routers → hard routers at a calibrated level, and the form that every site is to take."""
    limit = float(max(site.rank for site in find_sites(chain.graph)[0]))
    calibration, level, notes = _level(config, chain.graph, budget, data, options)
    buckets = config.buckets if calibration is None else calibration.buckets
    hardened = chain.then(HardenRankRouters(level, rule_of(config), buckets))
    routed, static = _split(hardened.graph, calibration, options)
    forms, facts, verdict = _choose(hardened.graph, routed, calibration, options)
    return hardened, RankDecision(
        budget,
        limit,
        runtime=None if calibration is None else RuntimeBudget(LEVEL, calibration.table, "ranks"),
        notes=(*notes, *verdict),
        facts=facts,
        calibration=calibration,
        site_ranks={} if calibration is None else calibration.site_ranks,
        forms=forms,
        static=static,
        kept_masked=_kept_masked(forms, facts, options),
    )


def compact_ranks(chain: Chain, decision: RankDecision, options: DeployOptions) -> Chain:
    """Static gates freeze and fold, and the sites for which it is cheaper gather their ranks."""
    if not decision.forms and not decision.static:
        return chain.then(FoldAdapters()) if options.fold else chain
    names = tuple(name for name, _ in decision.static)
    folded = chain.then(FreezeStaticGates(decision.static), FoldAdapters(names if options.fold is not False else ()))
    gathered = tuple(name for name, form in decision.forms.items() if form == Form.GATHERED)
    return folded.then(CompactRanks(gathered, decision.kept_masked))


def rule_of(config: CCM) -> str:
    """How the deployed router reads its level."""
    return config.k if config.gate == "topk" else "threshold"


def _level(
    config: CCM,
    frozen: fx.GraphModule,
    budget: float,
    data: Sequence[Mapping[str, Tensor]] | None,
    options: DeployOptions,
) -> tuple[Calibration | None, float, tuple[str, ...]]:
    """The calibrated level, or the training's own where there is no data."""
    rule = rule_of(config)
    if data is not None:
        scores = collect_scores(frozen, data, show=options.show)
        calibration = calibrate(
            scores, budget, rule=rule, k_min=config.k_min, buckets=config.buckets, batch=options.workload.batch
        )
        return calibration, calibration.level, (f"effective rank on the calibration data: {calibration.ranks}",)
    router = routers_of(frozen)[0]
    level = {"coverage": float(router.level), "fixed": budget, "threshold": 0.5}[rule]
    note = "not calibrated (no data=): k is rounded up to buckets, so the effective rank may exceed the budget"
    return None, level, (note,)


def _split(
    reference: fx.GraphModule, calibration: Calibration | None, options: DeployOptions
) -> tuple[list[AdapterSite], tuple[tuple[str, tuple[int, ...]], ...]]:
    """Routed sites, and the static ones with the directions that stay."""
    fewest = min(
        (_fewest_ranks(module) for module in reference.modules() if isinstance(module, HardRankRouter)), default=0
    )
    observed = dict(calibration.static) if calibration is not None and options.freeze_static else {}
    routed, static = [], []
    for site in find_sites(reference)[0]:
        if site.gate is None:
            continue
        if site.rank <= fewest:
            static.append((site.name, tuple(range(site.rank))))
        elif site.name in observed:
            static.append((site.name, observed[site.name]))
        else:
            routed.append(site)
    return routed, tuple(static)


def _fewest_ranks(router: HardRankRouter) -> int:
    """The fewest ranks that any input and any level can leave active."""
    fewest = router.router.config.k_min
    return max(fewest, int(router.buckets.min())) if router.rule == "coverage" else fewest


def _choose(
    reference: fx.GraphModule, routed: list[AdapterSite], calibration: Calibration | None, options: DeployOptions
) -> tuple[dict[str, str], dict[str, object], tuple[str, ...]]:
    """The form of every routed site, the prediction as facts for the report, and its verdict."""
    if not routed:
        return {}, {}, ()
    constants = _constants(options.engine)
    budget = calibration.ranks.mean if calibration is not None else float(routed[0].rank)
    forms: dict[str, str] = {}
    tokens_of = {site.name: options.workload.tokens if len(shape_of(site.x)) >= _TOKEN_AXES else 1 for site in routed}
    active = {site.name: _active(site, calibration) for site in routed}
    for tokens in sorted(set(tokens_of.values())):
        group = [_shape(site) for site in routed if tokens_of[site.name] == tokens]
        workload = Workload(options.workload.batch, tokens)
        forms |= {c.site: str(c.form) for c in choose_forms(group, active, workload, constants)}
    if options.forms is not None:
        forms = dict.fromkeys(forms, options.forms)
    router = next(m for m in reference.modules() if isinstance(m, RankRouter))
    shape = RouterShape(router.trunk.in_features, router.trunk.out_features, len(routed), router.max_rank)
    prediction = predict([_shape(site) for site in routed], shape, options.workload, active, constants)
    return forms, {"prediction": prediction.to_json(), "mean_rank": budget}, prediction.verdict


def _constants(engine: str) -> EngineConstants:
    """The engine's measured numbers, with the native kernels that this machine has for it."""
    fused = engine == "onnxruntime" and native_status("onnxruntime").active
    return replace(default_constants(engine), fused=fused)


def _kept_masked(
    forms: Mapping[str, str], facts: Mapping[str, Any], options: DeployOptions
) -> tuple[tuple[str, str], ...]:
    if options.forms is not None:
        return tuple((name, "forms='masked' was asked for") for name, form in forms.items() if form == Form.MASKED)
    choices = facts.get("prediction", {}).get("choices", ())
    reasons = {choice["site"]: choice["reason"] for choice in choices}
    default = "its input has no token axis, so there is nothing to gather for"
    return tuple((name, reasons.get(name, default)) for name, form in forms.items() if form == Form.MASKED)


def _active(site: AdapterSite, calibration: Calibration | None) -> ActiveRank:
    if calibration is None:
        return ActiveRank(float(site.rank), float(site.rank))
    mean, largest = calibration.site_ranks[site.name], calibration.largest[site.name]
    return ActiveRank(min(mean, site.rank), min(largest, site.rank))


def _shape(site: AdapterSite) -> SiteShape:
    return SiteShape(site.name, site.d_in, site.d_out, site.rank)
