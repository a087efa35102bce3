"""An engine of TensorRT as a model of NVIDIA's Triton Inference Server.

    OUT/NAME/config.pbtxt      tensorrt back end: requests of one length share a batch
             1/model.plan      the engine that the folder's script built

The server must run the TensorRT that built the engine, on that kind of GPU. Inputs and outputs it reads from
the engine.
Facts: docs/user_guide/model_configuration.md of triton-inference-server/server, "Auto-Generated Model Configuration".
"""

from __future__ import annotations

import shutil
from pathlib import Path

from ...errors import ArtifactError, InputError
from ..artifact import Artifact
from ..tensorrt.build_engine import ENGINE_FILE
from .options import ServeOptions
from .triton_config import batching_rows, block, quoted

PLAN = "model.plan"
_BATCH = "batch"


def checked_engine(folder: str, options: ServeOptions, *, ragged: bool) -> Artifact:
    """The artifact in `folder`, whose engine Triton can serve.

    Raises:
        ArtifactError: a folder that does not verify, or whose engine is not built.
        InputError: `ragged`, plugins, or an engine that takes no single example or fewer than `max_batch`.
    """
    artifact = Artifact.open(folder)
    if not (artifact.path / ENGINE_FILE).is_file():
        raise ArtifactError(
            "The folder's engine is not built yet, and Triton builds none.",
            given=folder,
            expected=ENGINE_FILE,
            remedy=str(artifact.manifest.get("remains", "run the folder's script where TensorRT and the GPU are")),
        )
    _check_request(artifact, options, ragged=ragged)
    return artifact


def fill_model(written: Path, artifact: Artifact, options: ServeOptions, *, version: str) -> str:
    """Copy the engine into the model's folder; the text of its configuration."""
    shutil.copy2(artifact.path / ENGINE_FILE, written / version / PLAN)
    rows = [
        f"name: {quoted(written.name)}",
        'platform: "tensorrt_plan"',
        f"default_model_filename: {quoted(PLAN)}",
        f"max_batch_size: {options.max_batch}",
        block("instance_group", (f"count: {options.replicas}", "kind: KIND_GPU")),
        block("dynamic_batching", batching_rows(options)),
    ]
    return "\n".join(rows) + "\n"


def _check_request(artifact: Artifact, options: ServeOptions, *, ragged: bool) -> None:
    least, most = (artifact.manifest["sizes"][_BATCH][end] for end in ("least", "most"))
    reasons = {
        "a request for ragged batches, which the tensorrt back end cannot pad": ragged,
        "nodes of plugins, whose library the server would have to load": bool(artifact.manifest.get("plugins")),
        f"batches from {least} on, and a request alone is a batch of one": least > 1,
        f"batches up to {most}, and max_batch is {options.max_batch}": most < options.max_batch,
    }
    if found := [reason for reason, holds in reasons.items() if holds]:
        raise InputError(
            "Triton's tensorrt back end cannot serve this engine as asked.",
            given=f"{artifact.path}: {'; '.join(found)}",
            expected="an engine without plugins for batches from one to max_batch, not ragged",
            remedy='export with sizes={"batch": (1, …, max_batch), …}, without plugins',
        )
