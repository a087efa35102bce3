"""Save a deployed model's adapters as a plain LoRA folder in PEFT's format, where that is the whole truth.

folder/adapter_model.safetensors   A, B, trained biases and whole-trained modules, under PEFT's names
folder/adapter_config.json         rank_pattern and alpha_pattern where sites differ; exactly the adapted layers
folder/gatefx.json                 methods and budgets that led here, sha256 of each file

Exact: every adapter that is left is y = W0 x + s·B A x for every token of every example, and the graph holds no other
decision. Adapters that a method dropped are absent, so PEFT leaves their layers alone.

Refuses graphs that still decide: PEFT, and servers that read its format, would run every adapter on everything.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..errors import SiteError
from ..models.families import HEAD_MODULES
from ..models.gate_modules import GATE_MODULES
from ..runtime.artifact import ArtifactWriter
from ..runtime.ops import visible_ops  # noqa: F401  # defines torch.ops.gatefx.visible_keys
from .find.adapters import AdapterSite, find_sites, plain_path
from .find.thresholds import additive_sites
from .gated_files import PEFT_PREFIX, TrainedBeside, refuse_stacked, without_wrapper, write_adapter

if TYPE_CHECKING:
    from .deployed import DeployedModel

KIND = "adapter"
_PLAIN = ("lora", "dropped")
_NAMED = 3  # odd sites that an error names


def save_adapter(model: DeployedModel, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Write the adapters of a deployed model that decides nothing more, whole or not at all.

    Raises:
        SiteError: the model still decides, or its adapters are no plain LoRA; says which and what to do.
        ArtifactError: the folder exists and overwrite is False.
    """
    graph = model.graph_module
    sites = plain_sites(model)
    settings = next(iter(model.methods.values()))
    beside = _trained_beside(model, sites)
    with ArtifactWriter(folder, overwrite=overwrite) as writer:
        write_adapter(writer.path, graph, sites, beside, settings, model.config)
        return writer.commit(_description(model)).path


def plain_sites(model: DeployedModel) -> tuple[AdapterSite, ...]:
    """The adapters, all of them plain.

    Raises:
        SiteError: they are not.
    """
    graph = model.graph_module
    odd = [f"{site.name} ({site.form})" for site in model.sites if site.form not in _PLAIN]
    gates = sorted({type(part).__name__ for part in graph.modules() if isinstance(part, GATE_MODULES)})
    own = {str(node.target) for node in graph.graph.nodes if str(node.target).startswith("gatefx.")}
    own -= {str(torch.ops.gatefx.visible_keys.default)}  # what a decoder's mask says anyway
    if odd or gates or own:
        found = [*odd[:_NAMED], *(["…"] if len(odd) > _NAMED else []), *gates, *sorted(own)]
        raise SiteError(
            "The model is no plain LoRA: it decides at run time, or its adapters were merged.",
            given=", ".join(found),
            expected="adapters that act alike on every token of every example",
            remedy="gatefx.export keeps the decisions; for merged adapters, optimize with fold=False",
        )
    sites, misses = find_sites(graph)
    if misses or len(additive_sites(graph)) != len(sites) or any(site.gate or site.factors for site in sites):
        raise SiteError(
            "Some updates are no product B A, which is all that a LoRA folder holds.",
            given=", ".join(miss.where for miss in misses) or "updates of another kind, such as HiRA's",
            expected="LoRA adapters",
            remedy="merge them with fold=True and save the model",
        )
    refuse_stacked(sites)
    return sites


def _description(model: DeployedModel) -> dict[str, Any]:
    return {
        "kind": KIND,
        "methods": {
            name: {"options": dataclasses.asdict(config), "budget": model.budgets.get(name)}
            for name, config in model.methods.items()
        },
        "budget": model.budget,
        **model.signature.described(),
        "sites": [site.to_json() for site in model.sites],
    }


def _trained_beside(model: DeployedModel, sites: tuple[AdapterSite, ...]) -> TrainedBeside:
    """Heads and biases."""
    tensors = dict(model.graph_module.named_parameters())
    whole, biases = beside_names(model, {site.path for site in sites})
    return TrainedBeside(*({key: tensors[name] for key, name in names.items()} for names in (whole, biases)))


def beside_names(model: DeployedModel, adapted: Set[str]) -> tuple[dict[str, str], dict[str, str]]:
    """What was trained beside the adapters, name in PEFT's files → in the graph: (of modules saved whole, of biases).

    A head is saved whole even if it was frozen before `optimize`: no base model has it.

    Args:
        adapted: paths of the layers with an adapter.
    """
    settings = next(iter(model.methods.values()))
    heads = HEAD_MODULES if settings.train_modules is None else settings.train_modules
    names = [name for name, _ in model.graph_module.named_parameters() if ".lora_" not in name]
    wholes = {_module(name) for name in names if _is_whole(name, heads)}
    wholes |= {_module(name) for name in model.trained.intersection(names) if not name.endswith(".bias")}
    whole: dict[str, str] = {}
    biases: dict[str, str] = {}
    for name in names:
        path = plain_path(without_wrapper(name))
        if _module(name) in wholes:
            whole[f"{PEFT_PREFIX}{path}.{_leaf(name)}"] = name
        elif name in model.trained:
            biases[f"{PEFT_PREFIX}{path}{'.base_layer' if path in adapted else ''}.{_leaf(name)}"] = name
    return whole, biases


def _is_whole(name: str, heads: tuple[str, ...]) -> bool:
    parts = name.split(".")
    return "modules_to_save" in parts or (any(part in heads for part in parts) and "original_module" not in parts)


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]
