"""Load gated models that `gated.save_pretrained` wrote, exactly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, fx, nn

from .errors import ArtifactError
from .models.configs.ccm import CCM
from .passes.find.adapters import find_sites
from .passes.gate.lora import AttachLora
from .passes.methods.ccm import GatedModel
from .passes.methods.ccm_files import ADAPTER_FILE, GATES_FILE, KIND, PEFT_PREFIX, plain_name, without_wrapper
from .preparing import build_gated
from .runtime.artifact import Artifact

_NAMED = 5  # odd sites that an error names


def load_gates(model: GatedModel, folder: str | Path) -> None:
    """Read the routers (not the adapters) that `save_gated` wrote into a gated model with the same sites.

    Raises:
        ArtifactError: a truncated or edited folder, one of another kind, or one for other sites.
    """
    artifact = _opened(folder)
    _check_sites(model, artifact)
    tensors = load_file(artifact.file(GATES_FILE))
    _assign(model.graph_module, {k: v for k, v in tensors.items() if k.startswith("rank_router")}, folder)


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
    options: dict[str, Any] = manifest["method"]["options"]
    values: Any = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    config = CCM(**values)
    rows = manifest["sites"]
    lora = AttachLora(
        config.rank,
        config.scale_alpha,
        config.lora_dropout,
        tuple(row["name"] for row in rows),
        tuple((row["name"], row["rank"], row["scale"] * row["rank"]) for row in rows),
    )
    gated = build_gated(model, config, "100%", example_inputs=example_inputs, lora=lora, share_frozen=share_frozen)
    gated.budget = float(manifest["budget"])
    for router in gated.routers():
        router.budget = gated.budget
    _check_sites(gated, artifact)
    names = {plain_name(name): name for name, _ in gated.graph_module.named_parameters() if ".lora_" not in name}
    trained = {names.get(name, name): tensor for name, tensor in load_file(artifact.file(GATES_FILE)).items()}
    _assign(gated.graph_module, trained, folder)
    _assign_adapter(gated.graph_module, load_file(artifact.file(ADAPTER_FILE)), folder)
    return gated


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
