"""Save a deployed model's adapters as a plain LoRA folder in PEFT's format, where that is the whole truth.

folder/adapter_model.safetensors   A, B and whole-trained modules, under PEFT's names
folder/adapter_config.json         rank_pattern and alpha_pattern where sites differ; exactly the adapted layers
folder/gatefx.json                 methods and budgets that led here, sha256 of each file

Exact: every adapter that is left is y = W0 x + s·B A x for every token of every example, and the graph holds no other
decision. Adapters that a method dropped are absent, so PEFT leaves their layers alone.

Refuses graphs that still decide: PEFT, and servers that read its format, would run every adapter on everything.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx

from ..errors import SiteError
from ..models.families import HEAD_MODULES
from ..models.gate_modules import GATE_MODULES
from ..runtime.artifact import ArtifactWriter
from .find.adapters import AdapterSite, find_sites
from .find.thresholds import additive_sites
from .gated_files import PEFT_PREFIX, refuse_stacked, without_wrapper, write_adapter

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
    sites = _plain_sites(model, graph)
    settings = next(iter(model.methods.values()))
    heads = HEAD_MODULES if settings.train_modules is None else settings.train_modules
    whole = _whole_modules(graph, heads)
    with ArtifactWriter(folder, overwrite=overwrite) as writer:
        write_adapter(writer.path, graph, sites, whole, settings, model.config)
        return writer.commit(_description(model)).path


def _plain_sites(model: DeployedModel, graph: fx.GraphModule) -> tuple[AdapterSite, ...]:
    """The adapters, all of them plain.

    Raises:
        SiteError: they are not.
    """
    odd = [f"{site.name} ({site.form})" for site in model.sites if site.form not in _PLAIN]
    gates = sorted({type(part).__name__ for part in graph.modules() if isinstance(part, GATE_MODULES)})
    own = sorted({str(node.target) for node in graph.graph.nodes if str(node.target).startswith("gatefx.")})
    if odd or gates or own:
        found = [*odd[:_NAMED], *(["…"] if len(odd) > _NAMED else []), *gates, *own]
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


def _whole_modules(graph: fx.GraphModule, heads: tuple[str, ...]) -> dict[str, Tensor]:
    """Modules that were trained whole, the head first of all, under PEFT's names."""
    found: dict[str, Tensor] = {}
    for name, parameter in graph.named_parameters():
        parts = name.split(".")
        kept = "modules_to_save" in parts or (any(part in heads for part in parts) and "original_module" not in parts)
        if kept and ".lora_" not in name:
            found[PEFT_PREFIX + without_wrapper(name).replace(".base_layer.", ".")] = parameter
    return found
