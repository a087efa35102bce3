"""Errors as a person reads them: what was given, what was expected, what to do; a traceback only with --debug.

Exit codes: 2 what was asked for cannot be done (a usage error, a missing or unfit file, a senseless budget),
1 it failed on the way, 130 interrupted.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ..errors import CaptureError, GatefxError, MissingDependencyError, PassError, ProviderError
from .console import messages

BAD_INPUT, FAILURE, INTERRUPTED = 2, 1, 130

_FAILURES = (CaptureError, PassError, MissingDependencyError, ProviderError)


@contextmanager
def reported(debug: bool) -> Iterator[None]:
    """Turn what escapes the block into a message on standard error and an exit code.

    Raises:
        typer.Exit: in place of any exception.
    """
    try:
        yield
    except (typer.Exit, typer.Abort):
        raise
    except KeyboardInterrupt:
        print("interrupted; nothing was left half written", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    except GatefxError as error:
        _show(error, debug)
        raise typer.Exit(exit_code(error)) from None
    except Exception as error:  # noqa: BLE001  # the program's outermost door: whatever comes out is reported
        _show(_unexpected(error), debug)
        raise typer.Exit(FAILURE) from None


def exit_code(error: GatefxError) -> int:
    """2 where the caller has to change what they asked for, 1 where the work itself failed."""
    # The errors of downloads belong to a module that imports torch; its name is enough to know them by.
    failed = isinstance(error, _FAILURES) or type(error).__name__ == "PackagedDataError"
    return FAILURE if failed else BAD_INPUT


def _unexpected(error: Exception) -> GatefxError:
    return GatefxError(
        "Something went wrong that gatefx did not foresee.",
        given=f"{type(error).__name__}: {error}",
        remedy="run the command again with --debug for the traceback, and report it",
    )


def _show(error: GatefxError, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    console = messages()
    if not console.is_terminal:
        print(f"error: {error}", file=sys.stderr)
        return
    console.print(Panel(_body(error), title="error", title_align="left", border_style="red", padding=(0, 1)))


def _body(error: GatefxError) -> Group:
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="cyan", no_wrap=True)
    rows.add_column(overflow="fold")
    for label, text in (("given", error.given), ("expected", error.expected), ("what to do", error.remedy)):
        if text:
            rows.add_row(label, Text(text))
    return Group(Text(error.problem, style="bold"), rows)
