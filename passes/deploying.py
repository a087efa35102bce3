"""Deploy: a trained gated model → hard decisions of every method → the work that they leave.

FreezeRegularization → harden(first) → harden(second) → …   the dense, masked graph: the meaning
                     → compact(first) → compact(second) → … the same function with less work
                     → prefill and decode of a decoder, likewise (`decode/programs.py`)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, fx

from ..errors import SiteError
from .chain import Chain
from .decision import Decision
from .decode.programs import decoder_programs
from .deployed import DeployedModel
from .find.adapters import find_sites
from .gated import GatedModel
from .gated_files import gate_tensors
from .harden.freeze import FreezeRegularization
from .methods.method import DeployOptions
from .sites import DeployedSite


def deploy(model: GatedModel, data: Sequence[Mapping[str, Tensor]] | None, options: DeployOptions) -> DeployedModel:
    """Harden and compact what every method decides. The model is not changed, but its tensors are shared.

    Args:
        model: with trained gates; data: unlabelled calibration batches.

    Raises:
        GatefxError: a decision needs data, or does not fit the graph.
        SiteError: fold=True where a gate still decides.
    """
    model.graph_module.eval()
    frozen = Chain(model.graph_module, options.verify).then(FreezeRegularization())
    hardened, decisions = frozen, dict[str, Decision]()
    for name, method in model.methods.items():
        hardened, decisions[name] = method.harden(hardened, data, options)
    compacted = hardened
    for name, method in model.methods.items():
        compacted = method.compact(compacted, decisions[name], options)
    sites = _sites(model, frozen.graph, compacted.graph, decisions)
    if options.fold:
        _refuse_unmerged(sites)
    programs, without = decoder_programs(hardened, model.methods, decisions, options, beside=compacted.graph)
    return DeployedModel(
        compacted.graph,
        hardened.graph,
        methods={name: method.config for name, method in model.methods.items()},
        decisions=decisions,
        sites=sites,
        trained=_trained_beside(model),
        programs=programs,
        loss=model.loss,
        model_config=model.config,
        report=model.report.extended(
            *compacted.reports,
            notes=(*(note for decision in decisions.values() for note in decision.notes), *without),
            facts={name: dict(decision.facts) for name, decision in decisions.items() if decision.facts},
        ),
    )


def _trained_beside(model: GatedModel) -> frozenset[str]:
    """Names of the parameters that train beside adapters and gates."""
    graph = model.graph_module
    adapters = frozenset().union(*(method.adapter_tensors(graph) for method in model.methods.values()))
    own = adapters | gate_tensors(graph).keys()
    return frozenset(name for name, parameter in graph.named_parameters() if parameter.requires_grad) - own


def _sites(
    model: GatedModel, frozen: fx.GraphModule, compacted: fx.GraphModule, decisions: Mapping[str, Decision]
) -> tuple[DeployedSite, ...]:
    """Every site of the trained model, and what each method made of it."""
    left = {site.name for site in find_sites(compacted)[0]}
    rows: Mapping[str, DeployedSite] = {
        site.name: DeployedSite(
            site.name, site.d_in, site.d_out, site.rank, "lora" if site.name in left else "merged", float(site.rank)
        )
        for site in find_sites(frozen)[0]
    }
    for name, method in model.methods.items():
        rows = method.describe(rows, decisions[name], compacted)
    return tuple(rows.values())


def _refuse_unmerged(sites: tuple[DeployedSite, ...]) -> None:
    """One merged weight cannot do what a gate that still decides does."""
    left = [site for site in sites if site.form not in ("merged", "dropped")]
    if left:
        raise SiteError(
            "A gated adapter cannot be merged: its gate decides per input.",
            given=f"fold=True, and {len(left)} sites that are not merged, such as {left[0].name} ({left[0].form})",
            expected="gates that are constant: a budget that keeps everything, or freeze_static=True with data",
            remedy="leave fold out, which merges what can be merged",
        )
