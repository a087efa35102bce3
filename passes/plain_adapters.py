"""Plain LoRA as a folder in PEFT's format holds it: y = W0 x + B A x at the layers that it names, and heads beside.

Read without PEFT, for a server or an exporter needs the tensors alone; the rank and the scale of a layer follow from
`adapter_config.json` as PEFT reads it (the first pattern that ends the layer's path counts).

Refuses whatever else such a folder can hold: other kinds of adapter, DoRA, activated, biased or replicated LoRA, ways
to begin that change the base model, adapters on embeddings, and gates, which would be left out.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from ..errors import ArtifactError, SiteError
from .gated_files import ADAPTER_CONFIG_FILE, ADAPTER_FILE, GATES_FILE, PEFT_PREFIX

_OTHER = (
    "use_dora", "lora_bias", "alora_invocation_tokens", "layer_replication", "use_bdlora", "use_qalora",
    "target_parameters",
)  # fmt: skip
"""Fields that, where they are set, make it something else than B A x."""
_BEGINNINGS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
"""Ways to begin that leave the base model's weights alone; beside true and false."""
_FACTOR = re.compile(rf"{re.escape(PEFT_PREFIX)}(?P<path>.+)\.lora_(?P<half>[AB])\.weight")


@dataclass(frozen=True)
class PlainAdapter:
    """What an adapter adds.

    Attributes:
        factors: layer's path → A (r, d_in) and B (d_out, r), the scale multiplied into B.
        beside: heads and biases that were trained too, by their names in the folder.
    """

    factors: Mapping[str, tuple[Tensor, Tensor]]
    beside: Mapping[str, Tensor]


def read_plain_adapter(folder: Path) -> PlainAdapter:
    """The adapter that PEFT, or `fast.save_adapter`, wrote to `folder`.

    Raises:
        ArtifactError: a file is missing or cannot be read; SiteError: it is more than plain LoRA.
    """
    try:
        config = json.loads((folder / ADAPTER_CONFIG_FILE).read_text(encoding="utf-8"))
        tensors = load_file(folder / ADAPTER_FILE)
    except Exception as error:
        # safetensors' errors have no common base but Exception.
        raise ArtifactError(
            "The adapter cannot be read.",
            given=f"{folder}: {error}",
            expected=f"a folder with {ADAPTER_CONFIG_FILE} and {ADAPTER_FILE}, as PEFT writes it",
        ) from error
    _check_plain(folder, config)
    halves: dict[str, dict[str, Tensor]] = {}
    beside: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        found = _FACTOR.fullmatch(name)
        if found:
            halves.setdefault(found["path"], {})[found["half"]] = tensor.float()
        elif ".lora_" in name:
            raise _no_plain(folder, name)
        else:
            beside[name] = tensor.float()
    if odd := [path for path, pair in halves.items() if len(pair) < len("AB")]:
        raise ArtifactError("The adapter lacks a factor.", given=f"{folder}: {odd[0]}", expected="lora_A and lora_B")
    factors = {path: (pair["A"], pair["B"] * _scale(config, path)) for path, pair in halves.items()}
    return PlainAdapter(factors, beside)


def _check_plain(folder: Path, config: Any) -> None:
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise _no_plain(folder, f"peft_type {config.get('peft_type') if isinstance(config, dict) else config!r}")
    if odd := [name for name in _OTHER if config.get(name)]:
        raise _no_plain(folder, ", ".join(odd))
    beginning = config.get("init_lora_weights", True)
    if isinstance(beginning, str) and beginning.lower() not in _BEGINNINGS:
        raise _no_plain(folder, f"init_lora_weights={beginning!r}, which changes the base model")
    if (folder / GATES_FILE).exists():
        raise _no_plain(folder, f"{GATES_FILE}: gates that decide")


def _no_plain(folder: Path, given: str) -> SiteError:
    return SiteError(
        "The adapter is more than plain LoRA.",
        given=f"{folder}: {given}",
        expected="updates s·B A x alone",
        remedy="gatefx.optimize it, and save_adapter where nothing is decided any more",
    )


def _scale(config: Mapping[str, Any], path: str) -> float:
    rank = _of_layer(config.get("rank_pattern") or {}, path, config["r"])
    alpha = _of_layer(config.get("alpha_pattern") or {}, path, config["lora_alpha"])
    return float(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _of_layer(pattern: Mapping[str, float], path: str, otherwise: float) -> float:
    return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", path)), otherwise)
