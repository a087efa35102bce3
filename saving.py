"""Load gated models that `gated.save_pretrained` wrote, exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, fx, nn

from .config import AdapterConfig
from .errors import ArtifactError
from .models.configs.catalogue import METHODS
from .passes.find.adapters import find_sites
from .passes.gate.lora import AttachLora
from .passes.gated import GatedModel
from .passes.gated_files import (
    ADAPTER_FILE,
    GATES_FILE,
    KIND,
    PEFT_PREFIX,
    gate_tensors,
    plain_name,
    without_wrapper,
)
from .preparing import build_gated
from .runtime.artifact import Artifact

_NAMED = 5  # odd sites that an error names


def load_gates(model: GatedModel, folder: str | Path) -> None:
    """Read the gates (not the adapters) that `save_gated` wrote into a gated model with the same sites.

    Raises:
        ArtifactError: a truncated or edited folder, one of another kind, or one for other methods or sites.
    """
    artifact = _opened(folder)
    _check_methods(model, artifact)
    _check_sites(model, artifact)
    tensors, gates = _gates_in(artifact), gate_tensors(model.graph_module)
    _assign(model.graph_module, {name: value for name, value in tensors.items() if name in gates}, folder)


def from_pretrained(
    model: nn.Module, folder: str | Path, *, example_inputs: Mapping[str, Tensor], share_frozen: bool = False
) -> GatedModel:
    """The gated model that `gated.save_pretrained(folder)` wrote, over its base model.

    Args:
        model: the base model without adapters (or the PEFT model the gated one was prepared from).
        folder: what save_pretrained wrote; example_inputs: as for `prepare`.

    Raises:
        ArtifactError: a truncated or edited folder, or a base model with other layers.
    """
    artifact = _opened(folder)
    manifest = artifact.manifest
    configs = tuple(_config(name, entry["options"], folder) for name, entry in manifest["methods"].items())
    gated = build_gated(
        model,
        configs,
        None,
        example_inputs=example_inputs,
        adapters=_saved_lora(configs[0], manifest["sites"]),
        resolved={name: entry["budget"] for name, entry in manifest["methods"].items()},
        share_frozen=share_frozen,
    )
    _check_sites(gated, artifact)
    names = {plain_name(name): name for name, _ in gated.graph_module.named_parameters() if ".lora_" not in name}
    trained = {names.get(name, name): tensor for name, tensor in _gates_in(artifact).items()}
    _assign(gated.graph_module, trained, folder)
    _assign_adapter(gated.graph_module, load_file(artifact.file(ADAPTER_FILE)), folder)
    return gated


def _gates_in(artifact: Artifact) -> dict[str, Tensor]:
    """Gates as saved; those of an early gatefx hold a router's coverage c instead of its level log(1 − c)."""
    tensors: dict[str, Tensor] = load_file(artifact.file(GATES_FILE))
    for name in [name for name in tensors if name.startswith("rank_router") and name.endswith(".coverage")]:
        tensors[name.removesuffix("coverage") + "level"] = torch.log1p(-tensors.pop(name))
    return tensors


def _config(name: str, options: Mapping[str, Any], folder: str | Path) -> AdapterConfig:
    """A method's config from its saved options.

    Raises:
        ArtifactError: a method or an option that this gatefx does not have.
    """
    if name not in METHODS:
        raise ArtifactError(f"This gatefx has no method {name!r}.", given=str(folder), expected=", ".join(METHODS))
    try:
        return type(METHODS[name])(**{field: _frozen(value) for field, value in options.items()})
    except TypeError as error:
        raise ArtifactError(
            f"The saved options are not {name}'s.", given=str(error), remedy="use the gatefx that saved them"
        ) from error


def _frozen(value: Any) -> Any:
    """JSON's lists as the tuples that configs hold."""
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


def _saved_lora(config: AdapterConfig, rows: Sequence[Mapping[str, Any]]) -> AttachLora | None:
    """LoRA on the saved sites with their ranks and scales; None where the methods' own adapters were saved."""
    if not rows:
        return None
    return AttachLora(
        config.rank,
        config.scale_alpha,
        config.lora_dropout,
        tuple(row["name"] for row in rows),
        tuple((row["name"], row["rank"], row["scale"] * row["rank"]) for row in rows),
    )


def _opened(folder: str | Path) -> Artifact:
    artifact = Artifact.open(folder)
    if artifact.manifest.get("kind") != KIND:
        raise ArtifactError(
            "The folder holds no saved gates.",
            given=f"{folder}, kind {artifact.manifest.get('kind')!r}",
            expected="a folder that gated.save_pretrained wrote",
            remedy="gatefx.load opens what gatefx.export wrote",
        )
    return artifact


def _check_methods(model: GatedModel, artifact: Artifact) -> None:
    saved = list(artifact.manifest["methods"])
    if set(saved) != set(model.methods):
        raise ArtifactError(
            "The saved gates belong to other methods.",
            given=", ".join(saved),
            expected=", ".join(model.methods),
            remedy=f"pass method={saved[0] if len(saved) == 1 else saved!r} with the options it was trained with",
        )


def _check_sites(model: GatedModel, artifact: Artifact) -> None:
    saved = [(row["name"], row["rank"]) for row in artifact.manifest["sites"]]
    found = [(site.name, site.rank) for site in find_sites(model.graph_module)[0]]
    if saved != found:
        odd = sorted({name for name, _ in set(saved) ^ set(found)})
        raise ArtifactError(
            "The saved gates belong to other adapter sites than the model has.",
            given=", ".join(odd[:_NAMED]) + (" …" if len(odd) > _NAMED else ""),
            expected=f"{len(saved)} sites with the ranks they were saved with",
            remedy="pass the base model (and adapter) that the gates were trained with",
        )


def _assign(graph: fx.GraphModule, tensors: Mapping[str, Tensor], folder: str | Path) -> None:
    """Copy saved tensors into the graph's own of the same names."""
    own = graph.state_dict()
    for name, tensor in tensors.items():
        if name not in own or own[name].shape != tensor.shape:
            raise ArtifactError(
                f"The model has no tensor {name} of shape {tuple(tensor.shape)}.",
                given=str(folder),
                expected="the base model that the gates were trained with",
            )
        with torch.no_grad():
            own[name].copy_(tensor)


def _assign_adapter(graph: fx.GraphModule, tensors: Mapping[str, Tensor], folder: str | Path) -> None:
    names = {f"{PEFT_PREFIX}{without_wrapper(name)}": name for name in graph.state_dict()}
    for site in find_sites(graph)[0]:
        for half, node in (("A", site.lora_a), ("B", site.lora_b)):
            names[f"{PEFT_PREFIX}{site.path}.lora_{half}.weight"] = str(node.target)
    _assign(graph, {names.get(name, name): tensor for name, tensor in tensors.items()}, folder)
