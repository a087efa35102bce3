"""Where people read: results on standard output, everything on the way there on standard error.

Colours, spinners and bars appear on a terminal only; what is piped is plain text.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console

PIPED_WIDTH = 160
"""Columns of tables that are piped: nobody's terminal limits them."""


def output() -> Console:
    """The console on standard output."""
    return _console(stderr=False)


def messages() -> Console:
    """The console on standard error."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else PIPED_WIDTH
    return Console(stderr=stderr, width=width, highlight=False, soft_wrap=False)


@dataclass(frozen=True)
class Stages:
    """Announces what a command is doing.

    Attributes:
        console: where to; always: also say it, line by line, where nobody watches a terminal (for work of minutes).
    """

    console: Console
    always: bool = False

    @contextmanager
    def stage(self, title: str, *, bars: bool = False) -> Iterator[None]:
        """Show `title` while the block runs, then a line with its seconds.

        Args:
            title: what is done, as in "capturing the model".
            bars: the block shows progress bars of its own, so no spinner turns beside them.
        """
        started = time.perf_counter()
        if self.console.is_terminal and not bars:
            with self.console.status(title):
                yield
        else:
            yield
        if self.console.is_terminal or self.always:
            seconds = time.perf_counter() - started
            self.console.print(f"  {title}  [dim]{seconds:.1f} s[/dim]")

    def say(self, line: str) -> None:
        """One line, whoever reads."""
        self.console.print(f"  {line}", markup=False)


@contextmanager
def without_warnings() -> Iterator[None]:
    """Keep other libraries' warnings from a person who cannot act on them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
