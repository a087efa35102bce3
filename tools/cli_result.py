"""What a command that compiles prints: a report for people, or JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from ..passes.deployed import DeployedModel
    from .compiling import CompileRequest


def print_result(deployed: DeployedModel, request: CompileRequest, *, as_json: bool) -> None:
    """Print what `deployed` is and where `request` wrote it."""
    from .compiling import result_of
    from .console import output
    from .inspect import show_report

    result = result_of(deployed, request)
    if as_json:
        typer.echo(json.dumps(result, indent=2))
        return
    show_report(result, output())
    output().print(f"written: {request.out}", markup=False, soft_wrap=True)
    if "remains" in result:
        output().print(f"remains: {result['remains']}", markup=False, soft_wrap=True)
