"""CCM-LoRA, deployed: trained routers → hard decisions → the cheaper exact form at every site.

    FreezeRegularization → (scores on calibration data) → HardenRankRouters → FreezeStaticGates → FoldAdapters
                                                                            → CompactRanks where gathering is cheaper

The cost model chooses between forms of one function; it never changes the function, it only says in the report where
routing cannot pay.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ...models.configs.ccm import CCM
from ...models.gates import HardRankRouter, RankRouter
from ..compact.ranks import CompactRanks
from ..contract import Pass
from ..cost import ActiveRank, Form, RouterShape, SiteShape, Workload, choose_forms, default_constants, predict
from ..deployed import DeployedModel, DeployedSite
from ..find.adapters import AdapterSite, find_sites
from ..graph.edit import shape_of
from ..harden.calibrate import Calibration, calibrate, collect_scores
from ..harden.freeze import FreezeRegularization
from ..harden.rank_router import HardenRankRouters
from ..harden.static_gates import FreezeStaticGates, open_every_gate
from ..pipeline import Pipeline
from ..report import PassReport
from ..simplify.fold_adapters import FoldAdapters
from .ccm import GatedModel, routers_of

_TOKEN_AXES = 3


@dataclass(frozen=True)
class DeployOptions:
    """How to deploy.

    Attributes:
        workload: (batch, tokens) that the cost model prices; engine: whose measured constants it uses.
        fold: fold ungated sites into their layers: None folds those whose gate turned static, True also a model that
            keeps every rank, False none.
        freeze_static: also freeze gates that never varied on the calibration data (approximate).
        forms: None lets the cost model choose; "gathered" or "masked" fixes the form of every routed site.
        verify: check graph legality and pass claims after every pass.
    """

    workload: Workload
    engine: str = "onnxruntime"
    fold: bool | None = None
    freeze_static: bool = False
    forms: str | None = None
    verify: bool = False
    show: bool | None = None


def deploy_all_ranks(model: GatedModel, options: DeployOptions) -> DeployedModel:
    """A budget that keeps every rank: no router is left, and the graph is the plain adapters' bit for bit."""
    frozen = FreezeRegularization()(model.graph_module, verify=options.verify)
    opened = open_every_gate(frozen.graph_module)(frozen.graph_module, verify=options.verify)
    reference = opened.graph_module
    notes: tuple[str, ...] = ("the budget keeps every rank, so nothing is routed",)
    passes = (FoldAdapters(),) if options.fold else ()
    folded = Pipeline(passes)(reference, verify=options.verify)
    if not options.fold:
        notes += ("pass fold=True to merge the adapters into the weights, which makes them free",)
    form = "merged" if options.fold else "lora"
    sites = tuple(_row(site, form, float(site.rank)) for site in find_sites(reference)[0])
    return DeployedModel(
        folded.graph_module,
        reference,
        method=model.method,
        budget=max(float(site.rank) for site in sites),
        sites=sites,
        calibration=None,
        loss=model.loss,
        model_config=model.config,
        report=model.report.extended(*frozen.reports, *opened.reports, *folded.reports, notes=notes),
    )


def deploy_ccm(
    model: GatedModel, budget: float, data: Sequence[Mapping[str, Tensor]] | None, options: DeployOptions
) -> DeployedModel:
    """Harden, compact and simplify a trained model. The model is not changed, but its tensors are shared."""
    model.graph_module.eval()
    frozen = _Chain(model.graph_module, options.verify).then(FreezeRegularization())
    calibration, level, notes = _level(model, frozen.graph, budget, data, options)
    buckets = model.method.buckets if calibration is None else calibration.buckets
    hardened = frozen.then(HardenRankRouters(level, rule_of(model.method), buckets))
    routed, static = _split(hardened.graph, calibration, options)
    names = tuple(name for name, _ in static)
    plain = hardened.then(FreezeStaticGates(static))
    folded = plain.then(FoldAdapters(names if options.fold is not False else ()))
    forms, facts, verdict = _choose(hardened.graph, routed, calibration, options)
    forms |= dict.fromkeys(folded.reports[-1].fired, str(Form.MERGED))
    gathered = tuple(name for name, form in forms.items() if form == Form.GATHERED)
    compacted = folded.then(CompactRanks(gathered, _kept_masked(forms, facts, options)))
    return DeployedModel(
        compacted.graph,
        hardened.graph,
        method=model.method,
        budget=budget,
        sites=tuple(_rows(hardened.graph, forms, calibration, budget)),
        calibration=calibration,
        loss=model.loss,
        model_config=model.config,
        report=model.report.extended(*compacted.reports, notes=(*notes, *verdict), facts=facts),
    )


@dataclass(frozen=True)
class _Chain:
    """A graph, what ran on it so far, and the reports of that."""

    graph: fx.GraphModule
    verify: bool
    reports: tuple[PassReport, ...] = ()

    def then(self, item: Pass) -> _Chain:
        """The chain after one more pass, whose place in the order is checked."""
        pipeline = Pipeline((item,), assumes=tuple(report.name for report in self.reports))
        result = pipeline(self.graph, verify=self.verify)
        return _Chain(result.graph_module, self.verify, (*self.reports, *result.reports))


def _rows(
    reference: fx.GraphModule, forms: Mapping[str, str], calibration: Calibration | None, budget: float
) -> Iterator[DeployedSite]:
    """Every site of the masked graph, with the form it took."""
    for site in find_sites(reference)[0]:
        mean = calibration.site_ranks.get(site.name, budget) if calibration else budget
        yield _row(site, forms.get(site.name, str(Form.LORA)), min(mean, site.rank))


def rule_of(config: CCM) -> str:
    """How the deployed router reads its level."""
    return config.k if config.gate == "topk" else "threshold"


def _level(
    model: GatedModel,
    frozen: fx.GraphModule,
    budget: float,
    data: Sequence[Mapping[str, Tensor]] | None,
    options: DeployOptions,
) -> tuple[Calibration | None, float, tuple[str, ...]]:
    """The calibrated level, or the training's own where there is no data."""
    rule = rule_of(model.method)
    if data is not None:
        scores = collect_scores(frozen, data, show=options.show)
        settings = {"rule": rule, "k_min": model.method.k_min, "buckets": model.method.buckets}
        calibration = calibrate(scores, budget, batch=options.workload.batch, **settings)  # type: ignore[arg-type]
        return calibration, calibration.level, (f"effective rank on the calibration data: {calibration.ranks}",)
    router = routers_of(frozen)[0]
    level = {"coverage": float(torch.log1p(-router.coverage)), "fixed": budget, "threshold": 0.5}[rule]
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
    constants = default_constants(options.engine)
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


def _kept_masked(
    forms: Mapping[str, str], facts: Mapping[str, Any], options: DeployOptions
) -> tuple[tuple[str, str], ...]:
    """Sites that stay masked, each with why gathering was declined."""
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


def _row(site: AdapterSite, form: str, mean_rank: float) -> DeployedSite:
    return DeployedSite(site.name, site.d_in, site.d_out, site.rank, form, mean_rank)
