"""`gatefx serve`: says where the server listens and how to ask it, then waits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..runtime.serving.options import ServeOptions
from .console import messages


def run_serve(
    folder: Path, options: ServeOptions, *, adapters: Mapping[str, Path] | None = None, host: str, port: int
) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        adapters: as `serve_folder`.

    Raises:
        MissingDependencyError: Ray is not installed; others as `serve_folder`.
    """
    from ..runtime.serving.ray_serve import serve_folder

    console = messages()
    folders = ", ".join(map(str, (folder, *(adapters or {}).values())))
    console.print(f"starting {options.replicas} of {folders}", markup=False, soft_wrap=True)

    def ready(address: str) -> None:
        console.print(f"serving {address}: POST {{'inputs': …}}, GET /, GET /health", markup=False, soft_wrap=True)
        console.print("Ctrl-C answers what is in flight and stops", markup=False)

    serve_folder(folder, options, adapters=adapters, host=host, port=port, ready=ready)
    console.print("stopped; what was in flight is answered", markup=False)
