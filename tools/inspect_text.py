"""`gatefx inspect GATES --text … | --data …`: what saved gates decide on texts, layer by layer and token by token.

Gates are deployed as they were saved, and only looked at: no text calibrates them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..deploy import optimize
from ..errors import InputError
from ..models.configs.masklora import MaskLoRA
from ..models.packaged_text import batches
from ..passes.deployed import DeployedModel
from ..passes.gated import GatedModel
from .heat_map import heat_rows
from .heat_page import write_heat_map
from .measured_gates import measure_gates
from .model_folder import open_model_folder
from .model_loading import example_batch, load_gated, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BATCH = 32


@dataclass(frozen=True)
class OpenedGates:
    """Saved gates over their base model, as they train and as they deploy."""

    gated: GatedModel
    deployed: DeployedModel
    tokenizer: PreTrainedTokenizerBase


def open_gates(folder: Path, base: str | None = None) -> OpenedGates:
    """Load and deploy the gates of `folder`.

    Args:
        folder: what gated.save_pretrained wrote; base: overrides the base model that the adapter names.

    Raises:
        InputError: a folder without gates; UntrainedGateError: gates that were never trained or fitted.
    """
    opened = open_model_folder(folder, base)
    if opened.manifest is None:
        raise InputError(
            "The folder holds an adapter without gates, so nothing decides about tokens.",
            given=str(folder),
            expected="a folder that gated.save_pretrained wrote",
            remedy="gatefx optimize ADAPTER OUT --method masklora --data sentences.txt, then inspect OUT",
        )
    tokenizer = load_tokenizer(opened)
    gated = load_gated(opened, example_batch(tokenizer))
    for method in gated.methods.values():
        # Which examples to run again is calibrated on data; what is shown is the first run.
        if isinstance(method.config, MaskLoRA):
            method.config = dataclasses.replace(method.config, recover_if_spike=False)
    return OpenedGates(gated, optimize(gated, progress=False), tokenizer)


def measured(
    description: Mapping[str, Any], gates: OpenedGates, texts: Sequence[str], *, max_length: int
) -> dict[str, Any]:
    """A description of saved gates with what they decide on texts.

    Its `adapters` get the form and the figures that they have when deployed, its `facts` the cuts; `measured_on` says
    on how many texts.
    """
    data = batches(gates.tokenizer, texts, batch_size=_BATCH, max_length=max_length)
    names = gates.deployed.signature.input_names
    found = measure_gates(gates.gated, gates.deployed, [{n: b[n] for n in names if n in b} for b in data])
    rows = [{**site.to_json(), **found.sites.get(site.name, {})} for site in gates.deployed.sites]
    facts = {name: dict(known) for name, known in description["facts"].items()}
    for name in ("tspeft", "gatera"):
        shares = {site: known["update_share"] for site, known in found.sites.items() if "update_share" in known}
        if name in facts and shares:
            facts[name]["update_shares"] = shares
    if found.cuts:
        facts["masklora"]["cuts"] = [dict(cut) for cut in found.cuts]
    return {**description, "adapters": rows, "facts": facts, "measured_on": len(texts)}


def write_text_map(gates: OpenedGates, text: str, out: Path) -> None:
    """Run the gates on `text` and write the heat map to `out`.

    Raises:
        SiteError: no gate that decides token by token.
    """
    encoded = gates.tokenizer(text, return_tensors="pt", truncation=True)
    inputs = {name: encoded[name] for name in gates.deployed.signature.input_names if name in encoded}
    tokens = gates.tokenizer.convert_ids_to_tokens(encoded["input_ids"][0])
    title = f"Tokens that {', '.join(gates.deployed.methods)} keeps"
    write_heat_map(heat_rows(gates.deployed, inputs), tokens, out, title=title)
