"""GateRA, deployed: trained gates → hard choices (or the soft gates) → each token through one of two weights.

harden    (logits on calibration data) → HardenModulations, or KeepModulations
compact   SettleModulations → FoldAdapters, FoldModulated → RouteUpdates → PrecomputeHira
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, fx

from ...models.configs.gatera import GateRA
from ...models.modulation import SoftModulation
from ..chain import Chain
from ..compact.routed import RouteUpdates
from ..decision import Decision, RuntimeBudget
from ..find.hira import HiraSite
from ..find.modulations import UpdateSite, find_modulated, modulations_of, update_sites
from ..harden.modulation import LEVEL, HardenModulations, KeepModulations
from ..harden.modulation_levels import LevelCalibration, calibrate_level, collect_logits, token_masks
from ..harden.static_modulation import SettleModulations
from ..simplify.fold_adapters import FoldAdapters
from ..simplify.fold_modulated import FoldModulated
from ..simplify.hira_weight import PrecomputeHira
from ..sites import DeployedSite
from .method import DeployOptions

UNIT = "share of tokens that take the update"
_ALL = 1.0

Batches = Sequence[Mapping[str, Tensor]]


@dataclass(frozen=True)
class ModulationDecision(Decision):
    """What hardening decided about whole updates.

    Attributes:
        rows: every site as it stood before compaction; gates: site → name of its gate in the hardened graph.
        calibration: level and shares on the calibration data; None without data, or for soft gates.
        open, shut: sites that take, or leave, the update of every token on that data.
    """

    rows: Mapping[str, DeployedSite] = field(default_factory=dict)
    gates: Mapping[str, str] = field(default_factory=dict)
    calibration: LevelCalibration | None = None
    open: tuple[str, ...] = ()
    shut: tuple[str, ...] = ()


def take_every_update(chain: Chain) -> tuple[Chain, ModulationDecision]:
    """A budget that keeps everything: no gate is left, and the graph is the plain adapters' bit for bit."""
    rows = {site.name: _row(site) for site in update_sites(chain.graph)}
    note = "the budget takes every token's update, so nothing is gated"
    return chain.then(SettleModulations()), ModulationDecision(_ALL, _ALL, notes=(note,), rows=rows)


def keep_soft(
    chain: Chain, budget: float | None, data: Batches | None, options: DeployOptions
) -> tuple[Chain, ModulationDecision]:
    """Gates deployed as they are: y = W0 x + g(x)·ΔW x."""
    logits = collect_logits(chain.graph, data, token_masks(chain.graph), show=options.show) if data else {}
    means = {name: float(torch.sigmoid(values).mean()) for name, values in logits.items()}
    rows = {site.name: replace(_row(site), gate_mean=means.get(site.name)) for site in update_sites(chain.graph)}
    kept = chain.then(KeepModulations())
    notes = ("a soft gate computes every token's update: no budget acts at run time",) if budget is not None else ()
    facts = {"gate": "soft", "gate_means": means}
    return kept, ModulationDecision(budget, _ALL, notes=notes, facts=facts, rows=rows, gates=_gates(kept.graph))


def choose_hard(
    chain: Chain, config: GateRA, budget: float | None, data: Batches | None, options: DeployOptions
) -> tuple[Chain, ModulationDecision]:
    """Gates → choices at a level that meets the budget on the data, or at the threshold."""
    level, note = level_without_data(chain.graph, config, budget)
    rows = {site.name: _row(site) for site in update_sites(chain.graph)}
    if data is None:
        hardened = chain.then(HardenModulations(level))
        decision = ModulationDecision(budget, _ALL, notes=(note,), rows=rows, gates=_gates(hardened.graph))
        return hardened, decision
    calibration = calibrate_level(chain.graph, data, budget=budget, level=level, show=options.show)
    hardened = chain.then(HardenModulations(calibration.level))
    for name, found in calibration.sites.items():
        rows[name] = replace(rows[name], update_share=found.share, gate_mean=found.gate)
    return hardened, ModulationDecision(
        budget,
        _ALL,
        runtime=RuntimeBudget(LEVEL, calibration.table, UNIT),
        notes=(_achieved(calibration),),
        facts=_facts(calibration),
        rows=rows,
        gates=_gates(hardened.graph),
        calibration=calibration,
        open=tuple(name for name, found in calibration.sites.items() if found.share == 1),
        shut=tuple(name for name, found in calibration.sites.items() if found.share == 0),
    )


def compact_updates(chain: Chain, config: GateRA, decision: ModulationDecision, options: DeployOptions) -> Chain:
    """Routed where a gate is hard; folded where it is constant; a HiRA update's weight built once where it is left."""
    opened = () if decision.gates else tuple(decision.rows)
    if options.freeze_static and (decision.open or decision.shut):
        opened = decision.open
        chain = chain.then(SettleModulations(decision.open, decision.shut))
    names = (*opened, *_constant(chain.graph))
    if names and (options.fold or (options.fold is None and decision.gates)):
        chain = chain.then(FoldAdapters(opened), FoldModulated(names))
    if config.gate == "hard" and decision.gates and options.forms != "masked":
        chain = chain.then(RouteUpdates())
    return chain.then(PrecomputeHira())


def level_without_data(graph_module: fx.GraphModule, config: GateRA, budget: float | None) -> tuple[float, str]:
    """(the level to use without data, what to say of it)."""
    known = float(modulations_of(graph_module)[0].level)
    if budget is not None and math.isfinite(known):
        return known, "the threshold is the one that an earlier deployment calibrated"
    missed = f"; the budget of {budget:g} was not calibrated (no data=)" if budget is not None else ""
    threshold = config.threshold
    return math.log(threshold / (1 - threshold)), f"tokens take the update where g ≥ {threshold:g}{missed}"


def describe_sites(
    sites: Mapping[str, DeployedSite], decision: ModulationDecision, compacted: fx.GraphModule
) -> dict[str, DeployedSite]:
    """The rows with this method's forms and shares; HiRA sites, which no other method knows, are added."""
    calls = {str(node.target): node for node in compacted.graph.find_nodes(op="call_module")}
    weights = {name for name, _ in compacted.named_parameters()}
    refined = dict(sites)
    for name, own in decision.rows.items():
        row = sites.get(name, own)
        if row.form == "dropped":
            continue
        call = calls.get(decision.gates.get(name, ""))
        form = row.form if name in sites else "hira" if f"{name}.update_weight" in weights else "merged"
        if call is not None:
            masked = all(user.target is torch.ops.aten.unsqueeze.default for user in call.users)
            hard = "masked" if masked else "routed"
            form = hard if str(call.target).startswith("hard_") else "soft"
        elif name in decision.shut:
            form = "dropped"
        refined[name] = replace(row, form=form, update_share=own.update_share, gate_mean=own.gate_mean)
    return refined


def _achieved(calibration: LevelCalibration) -> str:
    share, threshold = calibration.share, calibration.threshold
    return f"{share:.1%} of tokens take the update on the calibration data, where g ≥ {threshold:.3g}"


def _facts(calibration: LevelCalibration) -> dict[str, object]:
    return {
        "gate": "hard",
        "threshold": calibration.threshold,
        "update_share": calibration.share,
        "update_shares": {name: found.share for name, found in calibration.sites.items()},
        "gate_means": {name: found.gate for name, found in calibration.sites.items()},
    }


def _constant(graph_module: fx.GraphModule) -> tuple[str, ...]:
    """Sites whose soft gate is one number whatever the token."""
    return tuple(
        item.site.name
        for item in find_modulated(graph_module)
        if isinstance(item.module, SoftModulation) and item.module.constant() is not None
    )


def _gates(graph_module: fx.GraphModule) -> dict[str, str]:
    return {item.site.name: str(item.gate.target) for item in find_modulated(graph_module)}


def _row(site: UpdateSite) -> DeployedSite:
    form = "hira" if isinstance(site, HiraSite) else "lora"
    return DeployedSite(site.name, site.d_in, site.d_out, site.rank, form, float(site.rank))
