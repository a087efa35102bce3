"""Which methods there are, and what a user's `method` argument names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from ...config import AdapterConfig
from ...errors import MethodError
from .ccm import CCM
from .gatera import GateRA
from .masklora import MaskLoRA
from .tspeft import TSPEFT
from .weightlora import WeightLoRA

#: Name → the method's config with its defaults, in the order in which methods act on one model.
METHODS: Mapping[str, AdapterConfig] = MappingProxyType(
    {
        "weightlora": WeightLoRA(),
        "weightlora+": WeightLoRA(plus=True),
        "ccm": CCM(),
        "tspeft": TSPEFT(),
        "gatera": GateRA(),
        "masklora": MaskLoRA(),
    }
)

Method = str | AdapterConfig
Methods = Method | Sequence[Method]


def resolve_method(method: object) -> AdapterConfig:
    """The config that `method` names.

    Raises:
        MethodError: an unknown name, or an object that is no method config.
    """
    if isinstance(method, tuple(type(config) for config in METHODS.values())) and isinstance(method, AdapterConfig):
        return method
    if isinstance(method, str) and method in METHODS:
        return METHODS[method]
    raise MethodError(
        f"gatefx has no method {method!r}.",
        given=repr(method),
        expected=f"one of {', '.join(map(repr, METHODS))}, or a config object such as gatefx.CCM(rank=16)",
    )


def resolve_methods(method: object) -> tuple[AdapterConfig, ...]:
    """The configs that `method` names, one or several, in the order in which they act.

    Raises:
        MethodError: an unknown method, none at all, or one that is named twice.
    """
    several = isinstance(method, Sequence) and not isinstance(method, str)
    configs = [resolve_method(item) for item in method] if several else [resolve_method(method)]  # type: ignore[attr-defined]  # several says that it is a sequence
    names = [kind_of(config) for config in configs]
    if not configs or len(set(names)) < len(names):
        raise MethodError(
            "Several methods are named once each." if configs else "No method is named.",
            given=repr(method),
            expected=f"one or more of {', '.join(map(repr, METHODS))}",
        )
    order = list(dict.fromkeys(kind_of(config) for config in METHODS.values()))
    return tuple(sorted(configs, key=lambda config: order.index(kind_of(config))))


def kind_of(config: AdapterConfig) -> str:
    """The method's name without its variants: "weightlora+" is a weightlora."""
    return config.method.removesuffix("+")
