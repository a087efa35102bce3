"""A general plugin of vLLM: its server finds adapters by name in a folder, each looked at before it is served.

    GATEFX_VLLM_ADAPTERS=FOLDER VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve BASE --enable-lora --max-lora-rank 16
    curl … -d '{"model": "reviews", …}'                       FOLDER/reviews, as fast.save_adapter wrote it

vLLM imports this file by its entry point in the group `vllm.general_plugins`, in each of its processes; without the
variable nothing happens. Only versions in TRIED are taken: one that reads neither `rank_pattern` nor `alpha_pattern`
would scale such adapters wrongly without a word.
"""

from __future__ import annotations

import os
from pathlib import Path

import vllm
from vllm.lora.request import LoRARequest
from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry
from vllm.model_executor.models import ModelRegistry

from ...errors import GatefxError, InputError, MissingDependencyError
from ..manifest import is_inside
from .vllm_adapters import check_adapter
from .vllm_files import CLASSES

VARIABLE = "GATEFX_VLLM_ADAPTERS"
"""Environment variable: the folder that holds a folder an adapter."""
NAME = "gatefx"
"""Of the resolver."""
TRIED = ("0.32",)
"""Versions of vLLM, without their patch."""
_NEW_ID = 1  # vLLM numbers adapters itself when it has resolved them


class AdapterResolver(LoRAResolver):  # type: ignore[misc]  # its base is only known where vLLM is
    """Adapters by the names of their folders."""

    def __init__(self, root: Path) -> None:
        self._root = root

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:  # noqa: ARG002  # vLLM's signature
        """The adapter's request; None where there is no folder of that name.

        Raises:
            ValueError: an adapter that vLLM cannot serve. vLLM answers it as a bad request, with the reason.
        """
        folder = self._root / lora_name
        if not is_inside(lora_name) or not folder.is_dir():
            return None
        try:
            check_adapter(folder)
        except GatefxError as error:
            raise ValueError(str(error)) from error
        return LoRARequest(lora_name, _NEW_ID, str(folder))


def register() -> None:
    """What vLLM calls.

    Raises:
        InputError: the variable names no folder; MissingDependencyError: a version of vLLM that was not tried.
    """
    if _tried(str(vllm.__version__)):
        for name, place in CLASSES.items():
            ModelRegistry.register_model(name, place)
    named = os.environ.get(VARIABLE)
    if not named:
        return
    check_version(str(vllm.__version__))
    root = Path(named)
    if not root.is_dir():
        raise InputError(f"{VARIABLE} names no folder.", given=named, expected="a folder with a folder an adapter")
    LoRAResolverRegistry.register_resolver(NAME, AdapterResolver(root))


def _tried(version: str) -> bool:
    return ".".join(version.split(".")[:2]) in TRIED


def check_version(version: str) -> None:
    """Refuse a vLLM that was not tried.

    Raises:
        MissingDependencyError: as said.
    """
    if not _tried(version):
        raise MissingDependencyError(
            "gatefx's plugin was not tried with this vLLM.",
            given=f"vllm {version}",
            expected=", ".join(TRIED),
            remedy=f"install one of these, or unset {VARIABLE} and pass --lora-modules",
        )
