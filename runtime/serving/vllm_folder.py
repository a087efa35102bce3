"""A folder that vLLM serves with its gates: the base model's files, and one program a site for what its adapter adds.

    write_vllm_folder(fast, BASE, OUT)        then        vllm serve OUT --dtype float32

config.json      the base model's, with the architecture that `vllm_plugin.py` registers, see `vllm_llama.py`, and a
                 digest of the programs: vLLM keys compiled code by what stands here, and by no other file
update_SITE.pt2  see `passes/lower/site_programs.py`; torch alone loads it
gatefx.json      hashes of all files, and what was deployed

vLLM hands a layer the tokens of all requests in one row, so only gates that decide token by token are served: gatera
and tspeft. Routers that read the whole text, and dropped tokens, are refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import torch

from ...errors import ArtifactError, SiteError
from ...passes.deployed import DeployedModel
from ...passes.lower.site_programs import site_programs
from ..artifact import ArtifactWriter
from .vllm_files import ARCHITECTURES, DIGEST, SUFFIX, UPDATE

_CONFIG = "config.json"


def write_vllm_folder(model: DeployedModel, base: str | Path, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Write a deployed model for vLLM, whole or not at all.

    Args:
        model: of an architecture in ARCHITECTURES.
        base: folder of the base model in transformers' format, with the weights that `model` was prepared with.
        folder: where to; overwrite: replace an artifact that is there.

    Raises:
        SiteError: decisions that are no function of each token, or trained parts beside the adapters.
        ArtifactError: no base model of such an architecture in `base`, or a folder that exists.
    """
    config = _served_config(Path(base))
    if model.trained:
        raise SiteError(
            "The model has trained parts beside its adapters, which the base model's files do not hold.",
            given=", ".join(sorted(model.trained)),
            expected="adapters and gates alone",
            remedy="merge the other parts into the base model first",
        )
    programs = site_programs(model)
    with ArtifactWriter(folder, overwrite=overwrite) as writer:
        for file in sorted(Path(base).iterdir()):
            if file.is_file() and file.name not in (_CONFIG, "gatefx.json"):
                shutil.copyfile(file, writer.path / file.name)
        digest = hashlib.sha256()
        for name, program in programs.items():
            file = writer.path / f"{UPDATE}{name}{SUFFIX}"
            torch.export.save(program, file)
            digest.update(name.encode() + hashlib.sha256(file.read_bytes()).digest())
        served = config | {DIGEST: digest.hexdigest()}
        (writer.path / _CONFIG).write_text(json.dumps(served, indent=2) + "\n", encoding="utf-8")
        methods = {
            name: {"options": dataclasses.asdict(config), "budget": model.budgets[name]}
            for name, config in model.methods.items()
        }
        described = {"kind": "vllm model", "methods": methods, "budget": model.budget, "backend": "vllm"}
        return writer.commit(described | model.signature.described()).path


def _served_config(base: Path) -> dict[str, object]:
    """The base model's configuration under the other architecture."""
    try:
        config: dict[str, object] = json.loads((base / _CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError("The base model cannot be read.", given=str(base), expected=f"a {_CONFIG}") from error
    named = config.get("architectures")
    served = [ARCHITECTURES.get(str(name)) for name in named] if isinstance(named, list) else []
    if len(served) != 1 or served[0] is None:
        raise ArtifactError(
            "Gates within vLLM are written for some architectures only.",
            given=f"{base}: architectures {named!r}",
            expected=", ".join(ARCHITECTURES),
            remedy="serve it with `gatefx serve` or gatefx.generate",
        )
    return config | {"architectures": served}
