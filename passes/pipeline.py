"""A checked order of passes, itself a pass."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from torch import fx

from ..errors import PassError
from .contract import Pass, PassResult
from .report import Outcome, PassReport


@dataclass(frozen=True)
class Pipeline(Pass):
    """Passes in an order that is checked when the pipeline is built.

    Attributes:
        passes: what runs, first to last.
        assumes: class names of passes that have already run on the graph this pipeline will be given.

    Raises:
        PassError: a pass stands before one that it must follow.
    """

    passes: tuple[Pass, ...]
    assumes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        seen = set(self.assumes)
        for item in self.passes:
            missing = [name for name in _needed(item) if name not in seen]
            if missing:
                raise PassError(
                    f"{item.name} must run after {', '.join(missing)}.",
                    given=" → ".join(p.name for p in self.passes) or "no passes",
                    expected=f"{missing[0]} somewhere before {item.name}",
                    remedy="reorder the passes, or name what has already run in Pipeline(assumes=…)",
                )
            seen.update(_ran(item))

    def _run(self, graph_module: fx.GraphModule, *, verify: bool) -> PassResult:
        reports: list[PassReport] = []
        for item in self.passes:
            result = item(graph_module, verify=verify)
            graph_module = result.graph_module
            reports += result.reports
        return PassResult(graph_module, tuple(reports))

    def apply(self, graph_module: fx.GraphModule) -> Outcome:
        """Not called: a pipeline runs its passes one by one, each on a copy of its own."""
        raise PassError("A pipeline is run by calling it.", given=type(graph_module).__name__)

    def uuid(self) -> str:
        """A digest of every option and every source file involved, for caches of compiled graphs.

        Raises:
            PassError: a pass that is no dataclass, whose options cannot be read, or that has no source.
        """
        digest = hashlib.sha256(_own_sources())
        for item in self.passes:
            digest.update(repr(item).encode())
            digest.update(item.uuid().encode() if isinstance(item, Pipeline) else b"")
            digest.update(_source_of(item))
        return digest.hexdigest()


def _source_of(item: Pass) -> bytes:
    if not dataclasses.is_dataclass(item):
        raise PassError(
            f"{item.name} is no dataclass, so nothing says its options.", expected="@dataclass(frozen=True)"
        )
    try:
        return inspect.getsource(type(item)).encode()
    except (OSError, TypeError) as error:
        raise PassError(
            f"{item.name} has no source to tell it from other versions.",
            given=f"a class of {type(item).__module__}",
            expected="a class that a file defines",
            remedy="put the pass into a module of its own and import it",
        ) from error


@cache
def _own_sources() -> bytes:
    """Of all files of this package: passes share helpers."""
    files = sorted(Path(__file__).parent.rglob("*.py"))
    return b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)


def _needed(item: Pass) -> tuple[str, ...]:
    """Names of passes that must stand before `item`."""
    return item.assumes if isinstance(item, Pipeline) else item.after


def _ran(item: Pass) -> tuple[str, ...]:
    """Names of passes that have run once `item` has."""
    return tuple(name for inner in item.passes for name in _ran(inner)) if isinstance(item, Pipeline) else (item.name,)
