"""`gatefx doctor`: which engines and kernels this machine really has, and for each that is missing, why."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from importlib import metadata

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .. import __version__
from ..runtime.native.library import NativeStatus, native_status


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
        _native("native kernels for torch", native_status("torch")),
        _onnxruntime(),
        _native("native kernels for ONNX Runtime", native_status("onnxruntime")),
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
    try:
        import onnxruntime
    except ImportError as error:
        return Finding("ONNX Runtime", False, f"{error}; pip install 'gatefx[onnxruntime]'")
    clash = _installed("onnxruntime") and _installed("onnxruntime-gpu")
    detail = f"{onnxruntime.__version__}, providers of this build: {', '.join(onnxruntime.get_available_providers())}"
    if clash:
        return Finding("ONNX Runtime", False, "onnxruntime and onnxruntime-gpu are both installed: keep one")
    return Finding("ONNX Runtime", True, detail)


def _native(name: str, status: NativeStatus) -> Finding:
    if not status.active:
        return Finding(name, False, status.reason)
    others = ", ".join(isa for isa in status.isas if isa != status.isa)
    return Finding(name, True, f"{status.isa} (also there: {others or 'nothing else'}), {status.library}")


def _installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True
