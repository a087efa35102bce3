"""TS-PEFT, deployed: trained thresholds → thresholds under one level → tokens below them skip B.

harden    (r − τ on calibration data) → HardenUpdateThresholds
compact   SettleThresholds → FoldAdapters → SkipUpdates
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, fx

from ..chain import Chain
from ..compact.updates import SkipUpdates
from ..decision import Decision, RuntimeBudget
from ..find.adapters import AdapterSite, find_sites
from ..find.hira import HiraSite
from ..find.thresholds import AnySite, additive_sites, find_thresholded, thresholds_of
from ..harden.static_threshold import SettleThresholds
from ..harden.threshold_levels import ThresholdCalibration, calibrate_thresholds
from ..harden.update_threshold import LEVEL, HardenUpdateThresholds
from ..simplify.fold_adapters import FoldAdapters
from ..sites import DeployedSite
from .method import DeployOptions

UNIT = "share of tokens that take the update"
_ALL = 1.0

Batches = Sequence[Mapping[str, Tensor]]


@dataclass(frozen=True)
class ThresholdDecision(Decision):
    """What hardening decided about tokens.

    Attributes:
        rows: every site as it stood before compaction; gates: site → name of its gate in the hardened graph.
        downs: site → name of its A, where it has one.
        calibration: level and shares on the calibration data; None without data.
        always: sites whose threshold is zero and stays it, so that every token of any input takes the update.
        open, shut: sites at which every (no) token took the update on the calibration data.
    """

    rows: Mapping[str, DeployedSite] = field(default_factory=dict)
    gates: Mapping[str, str] = field(default_factory=dict)
    downs: Mapping[str, str] = field(default_factory=dict)
    calibration: ThresholdCalibration | None = None
    always: tuple[str, ...] = ()
    open: tuple[str, ...] = ()
    shut: tuple[str, ...] = ()


def take_every_update(chain: Chain) -> tuple[Chain, ThresholdDecision]:
    """A budget that keeps everything: no gate is left, and the graph is the plain adapters' bit for bit."""
    note = "the budget takes every token's update, so no token skips one"
    rows = {site.name: _row(site) for site in additive_sites(chain.graph)}
    decision = ThresholdDecision(_ALL, _ALL, notes=(note,), rows=rows, always=tuple(rows))
    return chain.then(SettleThresholds()), decision


def harden_thresholds(
    chain: Chain, budget: float | None, data: Batches | None, options: DeployOptions
) -> tuple[Chain, ThresholdDecision]:
    """Thresholds at the level that meets the budget on the data, or as they were trained."""
    rows = {site.name: _row(site) for site in additive_sites(chain.graph)}
    thresholds = thresholds_of(chain.graph)
    if data is None:
        level = 0.0 if budget is None else float(next(iter(thresholds.values())).level)
        hardened = chain.then(HardenUpdateThresholds(level))
        note = "tokens take the update where r ≥ τ, as trained"
        if budget is not None:
            note += f"; the budget of {budget:g} was not calibrated (no data=)"
        always = tuple(name for name, gate in thresholds.items() if float(gate.tau) + level <= 0)
        decision = ThresholdDecision(
            budget,
            _ALL,
            notes=(note,),
            rows=rows,
            gates=_gates(hardened.graph),
            downs=_downs(chain.graph),
            always=always,
        )
        return hardened, decision
    calibration = calibrate_thresholds(chain.graph, data, budget=budget, show=options.show)
    hardened = chain.then(HardenUpdateThresholds(calibration.level))
    rows |= {name: replace(rows[name], update_share=share) for name, share in calibration.shares.items()}
    return hardened, ThresholdDecision(
        budget,
        _ALL,
        runtime=RuntimeBudget(LEVEL, calibration.table, UNIT),
        notes=(f"{calibration.share:.1%} of tokens take the update on the calibration data",),
        facts=_facts(calibration, {name: float(gate.tau) for name, gate in thresholds.items()}),
        rows=rows,
        gates=_gates(hardened.graph),
        downs=_downs(chain.graph),
        calibration=calibration,
        open=tuple(name for name, share in calibration.shares.items() if share == 1),
        shut=tuple(name for name, share in calibration.shares.items() if share == 0),
    )


def compact_thresholds(chain: Chain, decision: ThresholdDecision, options: DeployOptions) -> Chain:
    """Tokens skip B where a gate is left; what is plain LoRA again folds where that is asked for."""
    opened, shut = decision.always, decision.shut if options.freeze_static else ()
    if options.freeze_static:
        opened = tuple(dict.fromkeys((*opened, *decision.open)))
    if opened or shut:
        chain = chain.then(SettleThresholds(opened, shut))
    if opened and (options.fold or (options.fold is None and decision.gates)):
        chain = chain.then(FoldAdapters(opened))
    return chain if options.forms == "masked" or not decision.gates else chain.then(SkipUpdates())


def describe_sites(
    sites: Mapping[str, DeployedSite], decision: ThresholdDecision, compacted: fx.GraphModule
) -> dict[str, DeployedSite]:
    """The rows with this method's forms and shares; sites that only methods on whole updates know are added."""
    gated = {str(node.target) for node in compacted.graph.find_nodes(op="call_module")}
    operators = compacted.graph.find_nodes(op="call_function", target=torch.ops.gatefx.token_gated_lora.default)
    skipping = {str(node.args[2].target) for node in operators}
    left = {site.name for site in additive_sites(compacted)}
    refined = dict(sites)
    for name, own in decision.rows.items():
        row = sites.get(name, own)
        if row.form == "dropped":
            continue
        form = row.form
        if decision.gates.get(name) in gated:
            form = "masked"
        elif decision.downs.get(name) in skipping:
            form = "skipping"
        elif name not in left and name in decision.shut:
            form = "dropped"
        refined[name] = replace(row, form=form, update_share=own.update_share)
    return refined


def _facts(calibration: ThresholdCalibration, thresholds: Mapping[str, float]) -> dict[str, object]:
    return {
        "level": calibration.level,
        "update_share": calibration.share,
        "update_shares": dict(calibration.shares),
        "thresholds": dict(thresholds),
    }


def _gates(graph_module: fx.GraphModule) -> dict[str, str]:
    return {item.site.name: str(item.call.target) for item in find_thresholded(graph_module)}


def _downs(graph_module: fx.GraphModule) -> dict[str, str]:
    return {site.name: str(site.lora_a.target) for site in find_sites(graph_module)[0]}


def _row(site: AnySite) -> DeployedSite:
    form = "lora" if isinstance(site, AdapterSite) else "hira" if isinstance(site, HiraSite) else "added"
    return DeployedSite(site.name, site.d_in, site.d_out, site.rank, form, float(site.rank))
