"""The two files that let transformers' `ExportedModel` load an artifact folder: `export.json` and `config.json`.

The format is transformers' own and marked experimental there; this file is the only one that knows it. The folder's
`model.onnx` and `model.onnx.data` are written by lowering, tokenizer files by the caller.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..errors import GatefxError, InputError, MissingDependencyError, missing_package

LEAST_TRANSFORMERS = (5, 23)
"""First version whose `ExportedModel` reads this layout."""

SCHEMA_VERSION = 1
"""Version of the layout of `export.json`."""

MODEL_FILE = "model.onnx"


def write_exported_model_files(
    path: Path,
    *,
    architecture: str,
    config: Any | None,
    example: Mapping[str, Tensor],
    output_names: Sequence[str],
    output_class: type | None = None,
) -> None:
    """Write `export.json`, and `config.json` if there is a config, into the folder `path`.

    Args:
        path: the folder that holds `model.onnx`.
        architecture: name of the transformers class the model came from.
        config: its `PreTrainedConfig`; None for a plain module. It is not changed.
        example: the inputs the graph was exported with, by name.
        output_names: the graph's outputs, in order.
        output_class: the `ModelOutput` that calls return, a class of transformers; None for a dict.

    Raises:
        MissingDependencyError: transformers is missing or too old.
        InputError: outputs that are not fields of `output_class`, in its order, or a class transformers cannot find.
        GatefxError: a version of transformers whose format is newer than the one known here.
    """
    version = checked_transformers("Writing a folder that transformers' ExportedModel loads")
    from transformers.exporters.base import EXPORT_MANIFEST_FILE
    from transformers.exporters.metadata import ExportMetadata

    named = {name: torch.empty(0) for name in output_names}
    outputs = named if output_class is None else _output(output_class, output_names, named)
    floats = [value.dtype for value in example.values() if value.is_floating_point()]
    dtype = getattr(config, "dtype", None) or (floats[0] if floats else torch.float32)
    recorded = ExportMetadata(
        architecture=architecture,
        packages={"transformers": version, "torch": torch.__version__},
        export_config={"export_format": "onnx", "dynamic": True},
        export_dtype=str(dtype).removeprefix("torch."),
        export_device="cpu",
        kwargs={name: _described(value) for name, value in example.items()},
        in_spec=pytree.treespec_dumps(pytree.tree_structure(((), dict(example)))),
        out_spec=pytree.treespec_dumps(pytree.tree_structure(outputs)),
    )
    component = {"file": MODEL_FILE, "metadata": asdict(recorded)}
    manifest = {"schema_version": SCHEMA_VERSION, "export_format": "onnx", "components": {"model": component}}
    (path / EXPORT_MANIFEST_FILE).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    if config is not None:
        stored = copy.deepcopy(config)
        stored.architectures = [architecture]
        stored.save_pretrained(path)


def checked_transformers(feature: str) -> str:
    """The version of transformers, once its exporters are known to be those that `feature` was written for.

    Raises:
        MissingDependencyError: transformers is missing or too old.
        GatefxError: a version whose format is newer than the one known here.
    """
    try:
        version = metadata.version("transformers")
    except metadata.PackageNotFoundError as error:
        raise missing_package("transformers", extra="hf", feature=feature) from error
    if tuple(int(part) for part in version.split(".")[:2]) < LEAST_TRANSFORMERS:
        raise MissingDependencyError(
            f"{feature} needs a newer transformers.",
            given=version,
            expected=f"transformers >= {'.'.join(map(str, LEAST_TRANSFORMERS))}",
            remedy="pip install 'gatefx[hf]'",
        )
    from transformers.exporters import base

    if base.EXPORT_SCHEMA_VERSION != SCHEMA_VERSION:
        raise GatefxError(
            "This transformers writes exported models in another layout.",
            given=f"schema {base.EXPORT_SCHEMA_VERSION} of transformers {version}",
            expected=f"schema {SCHEMA_VERSION}",
            remedy="Use a transformers that gatefx was tried with, or a newer gatefx.",
        )
    return version


def _output(output_class: type, output_names: Sequence[str], values: Mapping[str, Tensor]) -> Any:
    """An instance of `output_class` that holds the named outputs only."""
    if not is_dataclass(output_class) or not output_class.__module__.startswith("transformers."):
        raise InputError(
            "transformers could not rebuild this output class when it loads the folder.",
            given=f"{output_class.__module__}.{output_class.__qualname__}",
            expected="a ModelOutput class of transformers, or None for a dict",
        )
    order = [field.name for field in fields(output_class)]
    if [name for name in order if name in output_names] != list(output_names):
        raise InputError(
            f"The outputs are not fields of {output_class.__name__}, in its order.",
            given=", ".join(output_names),
            expected=f"some of {', '.join(order)}",
        )
    return output_class(**values)


def _described(value: Tensor) -> dict[str, Any]:
    return {"rank": value.dim(), "shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
