"""What the MODEL of a command may be, told from the folder's files alone: nothing heavy is imported to say no.

gates     what gated.save_pretrained wrote: an adapter in PEFT's format, gates.safetensors and gatefx.json
adapter   a PEFT adapter: adapter_config.json and adapter_model.safetensors
base      a transformers checkpoint: config.json. It has no adapters, so there is nothing to gate
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import Budget, resolve_budget
from ..errors import ArtifactError, InputError, SiteError
from ..runtime.artifact import Artifact
from ..runtime.manifest import MANIFEST_FILE

ADAPTER_CONFIG, ADAPTER_WEIGHTS, CHECKPOINT_CONFIG = "adapter_config.json", "adapter_model.safetensors", "config.json"
GATES = "gates"
_REMEDIES = {
    "HIRA": 'load it with peft, and call gatefx.optimize(peft_model, method="gatera", data=batches) in Python',
}
EXPECTED = "a folder that gated.save_pretrained wrote, or a PEFT adapter folder"


@dataclass(frozen=True)
class ModelFolder:
    """An adapter folder, with gates or without.

    Attributes:
        path: the folder; base: folder or name of the checkpoint that the adapter belongs to.
        manifest: of the gates, verified; None for a PEFT adapter without gates.
        adapter: the fields of adapter_config.json.
    """

    path: Path
    base: str
    manifest: Mapping[str, Any] | None
    adapter: Mapping[str, Any]

    @property
    def largest_rank(self) -> int:
        """The largest rank that adapter_config.json names."""
        return max(int(rank) for rank in (self.adapter["r"], *self.adapter.get("rank_pattern", {}).values()))

    @property
    def task_type(self) -> str | None:
        """PEFT's name of the task, e.g. "SEQ_CLS"."""
        task = self.adapter.get("task_type")
        return None if task is None else str(task)

    def check_budget(self, wanted: Budget | None) -> None:
        """Refuse a budget that no adapter of this folder can have.

        Raises:
            BudgetError: with the largest rank there is.
        """
        if wanted is not None:
            resolve_budget(wanted, limit=self.largest_rank)


def open_model_folder(path: Path, base: str | None = None) -> ModelFolder:
    """Find out what the folder holds.

    Args:
        path: the MODEL argument; base: overrides the base model that the adapter names.

    Raises:
        InputError: no such folder, an exported model, no adapter in it, or no base model named.
        SiteError: a checkpoint without adapters.
        ArtifactError: gates that were truncated or edited.
    """
    if not path.is_dir():
        raise InputError("There is no model folder of this name.", given=str(path), expected=EXPECTED)
    manifest = _gates_manifest(path)
    if not (path / ADAPTER_CONFIG).is_file():
        raise _without_adapter(path)
    adapter = _read_config(path / ADAPTER_CONFIG)
    if adapter.get("peft_type") != "LORA" or not isinstance(adapter.get("r"), int):
        raise InputError(
            "The adapter is none that gatefx can gate.",
            given=f"{path / ADAPTER_CONFIG} with peft_type {adapter.get('peft_type')!r}",
            expected="a LoRA adapter",
            remedy=_REMEDIES.get(str(adapter.get("peft_type")), ""),
        )
    named = base if base is not None else adapter.get("base_model_name_or_path")
    if not named:
        raise InputError(
            "The adapter does not say which model it belongs to.",
            given=str(path),
            expected="base_model_name_or_path in adapter_config.json",
            remedy="pass --base FOLDER",
        )
    return ModelFolder(path, str(named), manifest, adapter)


def check_target(folder: Path, *, overwrite: bool) -> None:
    """Refuse a target that is taken before minutes of work, as writing it would after them.

    Raises:
        ArtifactError: the folder exists and overwrite is False.
    """
    if folder.exists() and not overwrite:
        raise ArtifactError(
            "The target exists; nothing was written.",
            given=str(folder),
            expected="a name that is not taken",
            remedy="choose another folder, or pass --overwrite to replace this one",
        )


def _gates_manifest(path: Path) -> Mapping[str, Any] | None:
    if not (path / MANIFEST_FILE).is_file():
        return None
    manifest = Artifact.open(path).manifest
    if manifest.get("kind") != GATES:
        raise InputError(
            "The folder holds a model that is exported already.",
            given=str(path),
            expected=EXPECTED,
            remedy=f"gatefx inspect {path}",
        )
    return manifest


def _without_adapter(path: Path) -> InputError | SiteError:
    if (path / CHECKPOINT_CONFIG).is_file():
        return SiteError(
            "The model has no adapter that a gate could act on.",
            given=f"{path}: a checkpoint without {ADAPTER_CONFIG}",
            expected=EXPECTED,
            remedy='call gatefx.prepare(model, method="ccm", budget=6, rank=16, example_inputs=batch), train it, and '
            "save it with save_pretrained",
        )
    return InputError("The folder holds no model.", given=str(path), expected=EXPECTED)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path.name} cannot be read.", given=f"{path}: {error}", expected="JSON that PEFT wrote"
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"{path.name} is no JSON object.", given=str(path), expected="JSON that PEFT wrote")
    return content
