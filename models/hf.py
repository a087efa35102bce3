"""The door to transformers for the models of this folder: imported late, and kept quiet while a model loads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from ..errors import missing_package


def transformers_for(feature: str) -> ModuleType:
    """The transformers package, for `feature` (named in the error).

    Raises:
        MissingDependencyError: transformers is not installed.
    """
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise missing_package("transformers", extra="hf", feature=feature) from error
    module: ModuleType = transformers
    return module


@contextmanager
def quiet(transformers: ModuleType) -> Iterator[None]:
    """Hold back transformers' load reports and progress bars, and put its settings back afterwards.

    A new head is reported as missing weights, which frightens a person who asked for a new head. The bars are
    disabled through the hook and not through the global switch: that switch also moves the hub's own.
    """
    logging = transformers.utils.logging
    verbosity = logging.get_verbosity()
    hook = logging.set_tqdm_hook(_without_bar)
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        logging.set_tqdm_hook(hook)


def _without_bar(factory: Callable[..., Any], positional: tuple[Any, ...], named: dict[str, Any]) -> Any:
    return factory(*positional, **{**named, "disable": True})
