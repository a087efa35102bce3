"""The door to `tensorrt.plugin`: registers the plugins of an exported folder, for networks that are built by hand.

The folder's own `build_engine.py` needs no gatefx and does the same.
"""

from __future__ import annotations

import os

from ...errors import ArtifactError, GatefxError, MissingDependencyError
from ..artifact import Artifact
from .build_engine import PLUGINS_FOLDER
from .plugins.kernels import TABLE_FILE
from .plugins.register import register_plugins as register


def register_plugins(folder: str | os.PathLike[str]) -> int:
    """Register what `folder` has kernels for, with the TensorRT of this process and for its whole life.

    Args:
        folder: what `export(…, backend="tensorrt", plugins=True)` wrote.

    Returns:
        How many nodes of its model become plugins.

    Raises:
        ArtifactError: a folder without plugins, or one that was changed.
        MissingDependencyError: no TensorRT with `tensorrt.plugin` here.
        GatefxError: plugins of gatefx are registered in this process.
    """
    artifact = Artifact.open(folder)
    if f"{PLUGINS_FOLDER}/{TABLE_FILE}" not in artifact.manifest["files"]:
        raise ArtifactError(
            "The folder was exported without plugins.",
            given=str(folder),
            expected=f"a folder with {PLUGINS_FOLDER}/{TABLE_FILE}",
            remedy='export(…, backend="tensorrt", plugins=True)',
        )
    try:
        return register(artifact.path / PLUGINS_FOLDER)
    except ImportError as error:
        raise MissingDependencyError(
            "Plugins are registered with TensorRT, whose Python package 'tensorrt' cannot be imported here.",
            given=str(error),
            expected="the package tensorrt with tensorrt.plugin, 10.9 or newer",
            remedy="pip install tensorrt on the machine that builds the engine",
        ) from error
    except RuntimeError as error:
        raise GatefxError("The plugins cannot be registered.", given=str(error)) from error
