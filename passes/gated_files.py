"""Save a gated model: the adapter in PEFT's format, the gates beside it.

folder/adapter_model.safetensors   A, B and whole-trained modules, under PEFT's names
folder/adapter_config.json         what PEFT needs to load them (ungated: PEFT knows no gates)
folder/gates.safetensors           every gate's parameters and buffers, and anything else that was trained
folder/gatefx.json                 methods with options, budgets and facts, sites, versions, sha256 of each file
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file
from torch import Tensor, fx

from ..config import AdapterConfig
from ..errors import SiteError
from ..models.gate_modules import GATE_MODULES
from ..runtime.artifact import ArtifactWriter
from .find.adapters import AdapterSite, find_sites, plain_path
from .find.added import AddedSite
from .find.hira import HiraSite
from .find.linears import find_linears
from .find.thresholds import additive_sites
from .graph.edit import get_tensor

if TYPE_CHECKING:
    from .gated import GatedModel

PEFT_PREFIX = "base_model.model."
ADAPTER_FILE, ADAPTER_CONFIG_FILE, GATES_FILE = "adapter_model.safetensors", "adapter_config.json", "gates.safetensors"
KIND = "gates"
_TASK_TYPES = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
    "ForCausalLM": "CAUSAL_LM",
}


@dataclasses.dataclass(frozen=True)
class TrainedBeside:
    """What was trained beside adapters and gates, under PEFT's names.

    Attributes:
        whole: tensors of modules saved whole; biases: single ones, of layers that are not saved whole.
    """

    whole: Mapping[str, Tensor]
    biases: Mapping[str, Tensor]

    @property
    def bias(self) -> str:
        """PEFT's word for the biases that an adapter brings."""
        if not self.biases:
            return "none"
        return "lora_only" if all(name.endswith(".base_layer.bias") for name in self.biases) else "all"


def save_gated(model: GatedModel, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Write a gated model's trained parts to `folder`, whole or not at all.

    Raises:
        ArtifactError: the folder exists and overwrite is False.
        SiteError: one layer carries several adapters, which PEFT's format cannot hold in one folder.
    """
    graph = model.graph_module
    sites, _ = find_sites(graph)
    refuse_stacked(sites)
    gates = gate_tensors(graph)
    whole, rest = _other_trained(model, sites, frozenset(gates))
    with ArtifactWriter(folder, overwrite=overwrite) as writer:
        settings = next(iter(model.methods.values())).config
        write_adapter(writer.path, graph, sites, TrainedBeside(whole, {}), settings, model.config)
        save_file(_stored({**gates, **rest}), writer.path / GATES_FILE, metadata={"format": "pt"})
        return writer.commit(_description(model, sites)).path


def refuse_stacked(sites: tuple[AdapterSite, ...]) -> None:
    """PEFT's format holds one adapter a layer in one folder.

    Raises:
        SiteError: one layer carries several.
    """
    if len({site.path for site in sites}) < len(sites):
        names = ", ".join(site.name for site in sites if site.name != site.path)
        raise SiteError("A layer carries several adapters.", given=names, expected="one adapter per layer to save")


def write_adapter(
    folder: Path,
    graph: fx.GraphModule,
    sites: tuple[AdapterSite, ...],
    beside: TrainedBeside,
    settings: AdapterConfig,
    model_config: Any,
) -> None:
    """The two files that PEFT reads.

    Args:
        graph: that holds the sites; beside: what else was trained.
        settings: of the method, for what no site says; model_config: transformers' config of the base model.
    """
    tensors = _stored({**_adapter_tensors(graph, sites), **beside.whole, **beside.biases})
    save_file(tensors, folder / ADAPTER_FILE, metadata={"format": "pt"})
    config = _peft_config(graph, sites, beside, settings, model_config)
    (folder / ADAPTER_CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _adapter_tensors(graph: fx.GraphModule, sites: tuple[AdapterSite, ...]) -> dict[str, Tensor]:
    """A and B of each site under PEFT's names."""
    return {
        f"{PEFT_PREFIX}{site.path}.lora_{half}.weight": get_tensor(graph, str(node.target))
        for site in sites
        for half, node in (("A", site.lora_a), ("B", site.lora_b))
    }


def gate_tensors(graph: fx.GraphModule) -> dict[str, Tensor]:
    """Parameters and buffers of the graph's gates, by name."""
    paths = tuple(f"{path}." for path, module in graph.named_modules() if isinstance(module, GATE_MODULES))
    return {name: tensor for name, tensor in graph.state_dict().items() if name.startswith(paths)}


def _other_trained(
    model: GatedModel, sites: tuple[AdapterSite, ...], gates: frozenset[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Trained parameters beside LoRA and gates: (whole modules under PEFT's names, the rest under ours)."""
    graph = model.graph_module
    adapters = {str(node.target) for site in sites for node in (site.lora_a, site.lora_b)}
    own = frozenset().union(*(method.adapter_tensors(graph) for method in model.methods.values())) - adapters
    layers = {site.path for site in sites}
    whole: dict[str, Tensor] = {}
    rest: dict[str, Tensor] = {}
    for name, parameter in graph.named_parameters():
        if name in own:
            rest[name] = parameter
            continue
        if not parameter.requires_grad or name in adapters or name in gates:
            continue
        if plain_path(name) in layers:
            rest[plain_name(name)] = parameter
        else:
            whole[PEFT_PREFIX + without_wrapper(name)] = parameter
    return whole, rest


def plain_name(name: str) -> str:
    """A tensor's name as it was before PEFT wrapped the model."""
    return f"{plain_path(name)}.{name.rpartition('.')[2]}"


def without_wrapper(name: str) -> str:
    """A tensor's name without PEFT's wrapping of whole-trained modules."""
    return name.removeprefix(PEFT_PREFIX).replace(".modules_to_save.default.", ".")


def _peft_config(
    graph: fx.GraphModule,
    sites: tuple[AdapterSite, ...],
    beside: TrainedBeside,
    settings: AdapterConfig,
    model_config: Any,
) -> dict[str, Any]:
    """adapter_config.json: the commonest rank and scale, patterns for the others."""
    scales = {site.path: _scale(graph, site) for site in sites}
    rank = Counter([site.rank for site in sites] or [settings.rank]).most_common(1)[0][0]
    alphas = {site.path: scales[site.path] * site.rank for site in sites}
    alpha = Counter(list(alphas.values()) or [settings.scale_alpha]).most_common(1)[0][0]
    transposed = {linear.path for linear in find_linears(graph) if linear.transposed}
    architecture = (getattr(model_config, "architectures", None) or [""])[0]
    task = next((kind for suffix, kind in _TASK_TYPES.items() if architecture.endswith(suffix)), None)
    heads = sorted({name.removeprefix(PEFT_PREFIX).rpartition(".")[0] for name in beside.whole})
    return {
        "peft_type": "LORA",
        "task_type": task,
        "base_model_name_or_path": getattr(model_config, "_name_or_path", None) or None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": settings.lora_dropout,
        "bias": beside.bias,
        "fan_in_fan_out": bool(transposed),
        "use_rslora": False,
        "target_modules": [site.path for site in sites],
        "modules_to_save": heads or None,
        "rank_pattern": {site.path: site.rank for site in sites if site.rank != rank},
        "alpha_pattern": {path: value for path, value in alphas.items() if value != alpha},
    }


def _scale(graph: fx.GraphModule, site: AdapterSite) -> float:
    return float(get_tensor(graph, str(site.scale.target))) if isinstance(site.scale, fx.Node) else site.scale


def _description(model: GatedModel, sites: tuple[AdapterSite, ...]) -> dict[str, Any]:
    graph = model.graph_module
    rows = [{"name": site.name, "rank": site.rank, "scale": _scale(graph, site)} for site in sites]
    return {
        "kind": KIND,
        "methods": {
            name: {"options": dataclasses.asdict(method.config), "budget": method.budget}
            for name, method in model.methods.items()
        },
        "budget": model.budget,
        **model.signature.described(),
        "sites": rows,
        "adapters": _adapters(graph),
        "facts": {name: dict(method.trained_facts(graph)) for name, method in model.methods.items()},
    }


def _adapters(graph: fx.GraphModule) -> list[dict[str, Any]]:
    """Adapters of every kind for people who look into the folder; loading reads `sites`, LoRA's own."""
    kinds = {HiraSite: "hira", AdapterSite: "lora", AddedSite: "added"}
    found = {site.name: {"kind": kinds[type(site)], "rank": site.rank} for site in additive_sites(graph)}
    return [{"name": name, **row} for name, row in found.items()]


def _stored(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies that safetensors can write."""
    return {name: tensor.detach().contiguous().cpu().clone() for name, tensor in tensors.items()}
