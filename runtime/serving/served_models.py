"""The models of one server: the one that it serves, and others by name, such as adapters that decide of the same base.

Adapters that decide are part of their graph, so that each of them is an exported folder of its own. Plain adapters of
one folder (`ServedModel.adapters`) share its graph; a request names both kinds alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import InputError
from .batching import Request
from .served_model import ServedModel, no_such_adapter

OWN = ""
"""Key of the model that requests without an adapter take."""
_NAME = re.compile(r"[A-Za-z0-9_.-]+")


@dataclass(frozen=True)
class ServedModels:
    """Plain data, as `ServedModel` is.

    Attributes:
        own: answers requests that name none of the others.
        others: adapter's name → its model.

    Raises:
        InputError: a name that is no name, or one that `own` has for an adapter of its own.
    """

    own: ServedModel
    others: Mapping[str, ServedModel]

    def __post_init__(self) -> None:
        odd = [name for name in self.others if not _NAME.fullmatch(name)]
        twice = [name for name in self.others if name in self.own.adapters]
        if odd or twice:
            raise InputError(
                "An adapter cannot have this name." if odd else "The model has an adapter of this name itself.",
                given=", ".join(map(repr, odd or twice)),
                expected="letters, digits, '_', '.' and '-'" if odd else "another name",
            )

    def __iter__(self) -> Iterator[tuple[str, ServedModel]]:
        """(key, model) of each, the own one first."""
        return iter([(OWN, self.own), *self.others.items()])

    def request(self, arrays: Any, budget: Any = None, adapter: Any = None) -> tuple[str, Request]:
        """(key of the model that answers it, the request of one caller), checked.

        Args, Raises: as `ServedModel.request`.
        """
        if isinstance(adapter, str) and adapter in self.others:
            return adapter, self.others[adapter].request(arrays, budget)
        if adapter is not None and adapter not in self.own.adapters:
            raise no_such_adapter(adapter, (*self.own.adapters, *self.others))
        return OWN, self.own.request(arrays, budget, adapter)

    def model(self, key: str) -> ServedModel:
        """The model of a key that `request` gave."""
        return self.own if key == OWN else self.others[key]

    def described(self) -> dict[str, Any]:
        """For people who look at the server: the own model, every adapter's name, what those of other folders take."""
        own = self.own.described()
        others = {name: model.described() for name, model in self.others.items()}
        return {**own, "adapters": [*own["adapters"], *others], "others": others}
