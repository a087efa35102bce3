"""Progress bars for work a person waits for; silent where nobody watches."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Item = TypeVar("Item")


def track(
    items: Iterable[Item], description: str, *, show: bool | None = None, total: int | None = None
) -> Iterator[Item]:
    """Iterate with a bar on standard error.

    Args:
        show: None shows the bar where standard error is a terminal.
        total: number of items, where `items` has no length.
    """
    visible = sys.stderr.isatty() if show is None else show
    if not visible:
        yield from items
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, *times, console=Console(stderr=True), transient=True) as bar:
        length = total if total is not None else len(items) if isinstance(items, Sized) else None
        yield from bar.track(items, total=length, description=description)
