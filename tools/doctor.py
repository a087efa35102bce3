"""`gatefx doctor`: which engines and kernels this machine really has, and for each that is missing, why."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .. import __version__
from ..runtime.capabilities import Capability, capabilities, onnxruntime_providers


@dataclass(frozen=True)
class Finding:
    """One thing that may be there.

    Attributes:
        name: what it is; active: whether it would be used; detail: version and place, or why not.
    """

    name: str
    active: bool
    detail: str

    def to_json(self) -> dict[str, object]:
        """The fields as plain values."""
        return asdict(self)


def examine() -> list[Finding]:
    """Everything that decides what a model runs on."""
    return [
        Finding("gatefx", True, f"{__version__} on Python {platform.python_version()}, {platform.machine()}"),
        _torch(),
        _onnxruntime(),
        *map(_finding, capabilities()),
    ]


def show_findings(findings: list[Finding], console: Console) -> None:
    """Print the findings for a person."""
    table = Table(show_header=False, box=None)
    for finding in findings:
        mark = "[green]yes[/green]" if finding.active else "[yellow]no[/yellow]"
        table.add_row(mark, finding.name, escape(finding.detail))
    console.print(table)


def _torch() -> Finding:
    import torch

    return Finding("torch", True, f"{torch.__version__}, {torch.get_num_threads()} threads")


def _onnxruntime() -> Finding:
    providers, reason = onnxruntime_providers()
    if reason:
        return Finding("ONNX Runtime", False, reason)
    import onnxruntime

    return Finding("ONNX Runtime", True, f"{onnxruntime.__version__}, providers of this build: {', '.join(providers)}")


def _finding(row: Capability) -> Finding:
    return Finding(row.name, row.available, row.found if row.available else row.reason)
