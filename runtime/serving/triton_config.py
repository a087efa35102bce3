"""The text of a `config.pbtxt`: protobuf's text format of Triton's ModelConfig, as far as served models need it.

Facts: docs/user_guide/model_configuration.md and ragged_batching.md of triton-inference-server/server, and the README
of its onnxruntime_backend.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

import numpy as np

from ..sessions.onnxruntime_start import PROVIDERS, full_name
from ..sessions.protocol import TensorSpec
from .options import ServeOptions
from .served_model import ServedModel

_TYPES: Mapping[str, str] = {
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
    "bool": "TYPE_BOOL",
    **{f"{kind}{bits}": f"TYPE_{kind.upper()}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
}
_TENSORRT = 'execution_accelerators { gpu_execution_accelerator { name: "tensorrt" } }'
OPTIONS_KEY = "gatefx"
"""Parameter of the python back end that holds the options, as JSON."""
ARTIFACT = "artifact"
"""Folder beside the python back end's `model.py`."""


def budget_input(method: str) -> TensorSpec:
    """The optional input (B, 1) that sets a method's budget."""
    return TensorSpec(f"budget_{method}", np.dtype("float64"), ("batch", 1))


def config_text(model: ServedModel, options: ServeOptions, *, name: str, ragged: bool, library: str = "") -> str:
    """The configuration of one model.

    Args:
        model: what it takes and gives; options: of batching and instances; name: its folder's.
        ragged: for the python back end, with requests of several lengths in a batch, and budgets.
        library: path on the server of the native kernels for the onnxruntime back end; empty without them.
    """
    budgets = [budget_input(method) for method in model.budgets] if ragged else []
    inputs = [_tensor(spec, ("allow_ragged_batch: true",) if ragged else ()) for spec in model.inputs]
    inputs += [_tensor(spec, ("optional: true",)) for spec in budgets]
    provider = full_name(options.provider)
    kind = "KIND_GPU" if provider in (PROVIDERS["cuda"], PROVIDERS["tensorrt"]) else "KIND_CPU"
    rows = [
        f"name: {quoted(name)}",
        f"backend: {quoted('python' if ragged else 'onnxruntime')}",
        f"max_batch_size: {options.max_batch}",
        *(f"input {text}" for text in inputs),
        *(f"output {_tensor(spec)}" for spec in model.outputs),
        block("instance_group", (f"count: {options.replicas}", f"kind: {kind}")),
        block("dynamic_batching", batching_rows(options)),
        *_parameters(options, ragged=ragged),
    ]
    if not ragged and provider == PROVIDERS["tensorrt"]:
        rows.append(block("optimization", (_TENSORRT,)))
    if library:
        rows.append(block("model_operations", (f"op_library_filename: {quoted(library)}",)))
    return "\n".join(rows) + "\n"


def batching_rows(options: ServeOptions) -> tuple[str, ...]:
    """How long requests wait for others, and how many may wait."""
    return (
        f"max_queue_delay_microseconds: {round(options.wait_ms * 1000)}",
        f"default_queue_policy {{ max_queue_size: {options.queued} }}",
    )


def _parameters(options: ServeOptions, *, ragged: bool) -> list[str]:
    if ragged:
        told = {"threads": options.threads, "width": options.width, "longest": options.longest}
        values = {OPTIONS_KEY: json.dumps({**told, "max_batch": options.max_batch, "provider": options.provider})}
    else:
        values = {"intra_op_thread_count": str(options.threads), "inter_op_thread_count": "1"}
    return [
        block("parameters", (f"key: {quoted(key)}", f"value {{ string_value: {quoted(value)} }}"))
        for key, value in values.items()
    ]


def _tensor(spec: TensorSpec, further: Iterable[str] = ()) -> str:
    """One input or output; its batch axis goes without saying."""
    sizes = [size if isinstance(size, int) else -1 for size in spec.shape[1:]]
    scalar = not sizes
    rows = [f"name: {quoted(spec.name)}", f"data_type: {_TYPES[spec.dtype.name]}"]
    rows.append(f"dims: [ {', '.join(map(str, [1] if scalar else sizes))} ]")
    if scalar:
        rows.append("reshape { shape: [ ] }")
    return block("", (*rows, *further)).lstrip()


def block(name: str, rows: Iterable[str]) -> str:
    """A message in protobuf's text format."""
    inside = "\n".join(f"  {row}" for row in rows)
    return f"{name} {{\n{inside}\n}}"


def quoted(text: str) -> str:
    """A string in protobuf's text format."""
    return json.dumps(text)
