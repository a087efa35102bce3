"""gatefx compiles adapters that decide: capture, gate, train, harden, compact, lower.

    gated = gatefx.prepare(model, method="ccm", budget=6, rank=16, example_inputs=batch)
    …train…
    fast = gatefx.optimize(gated, data=calibration)
    gatefx.export(fast, "out/", backend="onnxruntime")
    session = gatefx.load("out/")

Importing gatefx imports nothing heavy and patches nothing; each name is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import methods
    from .deploy import optimize
    from .errors import GatefxError
    from .exporting import export
    from .generating import generate
    from .loading import load
    from .models.configs.ccm import CCM
    from .passes.methods.hf_trainer import GateCallback
    from .preparing import prepare
    from .runtime.capabilities import capabilities
    from .saving import from_pretrained

__version__ = "0.1.0"

_HOMES = {
    "CCM": "models.configs.ccm",
    "GateCallback": "passes.methods.hf_trainer",
    "GatefxError": "errors",
    "capabilities": "runtime.capabilities",
    "export": "exporting",
    "from_pretrained": "saving",
    "generate": "generating",
    "load": "loading",
    "optimize": "deploy",
    "prepare": "preparing",
}

__all__ = [
    "CCM",
    "GateCallback",
    "GatefxError",
    "capabilities",
    "export",
    "from_pretrained",
    "generate",
    "load",
    "methods",
    "optimize",
    "prepare",
]


def __getattr__(name: str) -> Any:
    if name == "methods":
        return importlib.import_module(".methods", __name__)
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
