"""Which class implements which method's config."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ...config import AdapterConfig
from ...errors import MethodError
from ...models.configs.ccm import CCM
from ...models.configs.gatera import GateRA
from ...models.configs.masklora import MaskLoRA
from ...models.configs.tspeft import TSPEFT
from ...models.configs.weightlora import WeightLoRA
from .ccm import RankRouting
from .gatera import TokenModulation
from .masklora import TokenPruning
from .method import Method
from .tspeft import TokenSelection
from .weightlora import AdapterSelection

METHOD_CLASSES: Mapping[type[AdapterConfig], type[Method[Any]]] = MappingProxyType(
    {
        WeightLoRA: AdapterSelection,
        CCM: RankRouting,
        TSPEFT: TokenSelection,
        GateRA: TokenModulation,
        MaskLoRA: TokenPruning,
    }
)


def class_of(config: AdapterConfig) -> type[Method[Any]]:
    """The class that implements a config.

    Raises:
        MethodError: none does.
    """
    found = METHOD_CLASSES.get(type(config))
    if found is None:
        raise MethodError(
            f"gatefx has no method for a {type(config).__name__}.",
            given=repr(config),
            expected=", ".join(known.__name__ for known in METHOD_CLASSES),
        )
    return found
