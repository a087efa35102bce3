"""What vLLM can serve of ours: adapters that decide nothing more, in PEFT's format. The rest is refused with reasons.

vLLM reads a folder of `fast.save_adapter` as it is: `LoRARequest("reviews", 1, folder)`. It would read a folder of
gates too, without the gates, and answer as another model; so folders are looked at first, by `vllm_plugin.py` or by
hand.
"""

from __future__ import annotations

from pathlib import Path

from ...errors import SiteError
from ...passes.plain_adapters import read_plain_adapter
from ..artifact import Artifact
from ..manifest import MANIFEST_FILE

_HEADS = ("classifier", "score")
"""Modules that vLLM takes whole from an adapter."""
_GATES = "gates"
_COMPACTING = "masklora"
_WHOLE = "vLLM runs every rank of an adapter on every token"
_PAGED = (
    "vLLM cuts its graph at every attention and pages one cache for all layers, so that no layer can run on fewer "
    "tokens than another"
)


def check_adapter(folder: Path) -> int:
    """The largest rank of an adapter that vLLM can serve, for `--max-lora-rank`.

    Raises:
        SiteError: gates, other adapters than plain LoRA, or trained parts that vLLM does not take; says why.
        ArtifactError: the folder is edited, or holds no adapter.
    """
    _check_decided(folder)
    adapter = read_plain_adapter(folder)
    biases = [name for name in adapter.beside if name.endswith(".base_layer.bias")]
    odd = sorted({name.rsplit(".", 1)[0].rpartition(".")[2] for name in adapter.beside if name not in biases})
    if biases or set(odd) - set(_HEADS):
        raise SiteError(
            "The adapter brings trained parts that vLLM does not take from an adapter.",
            given=", ".join([*biases, *odd]),
            expected=f"A and B alone, or {' or '.join(_HEADS)} beside them",
            remedy='train with bias="none"; merge other parts into the base model and serve that',
        )
    return max((len(lora_a) for lora_a, _ in adapter.factors.values()), default=0)


def _check_decided(folder: Path) -> None:
    """Refuse what still decides."""
    if not (folder / MANIFEST_FILE).is_file():
        return
    manifest = Artifact.open(folder).manifest
    if manifest.get("kind") != _GATES:
        return
    methods = [str(name) for name in manifest["methods"]]
    raise SiteError(
        "The adapter decides at run time, and vLLM would run it without its gates.",
        given=f"{folder}: gates of {', '.join(methods)}; {_PAGED if _COMPACTING in methods else _WHOLE}",
        expected="an adapter that decides nothing more",
        remedy="gatefx.optimize(gated, …).save_adapter(folder) where every decision is settled (weightlora, a budget "
        "of 100%); gatera's and tspeft's gates: vllm_folder.write_vllm_folder; else `gatefx serve` or gatefx.generate",
    )
