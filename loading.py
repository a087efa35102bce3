"""load: an artifact folder that `gatefx.export` wrote → the session that runs it.

No pass and no model is imported, nor torch where the folder needs none of it: a server starts soon, and stays small.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .errors import InputError, ProviderError
from .runtime.artifact import Artifact
from .runtime.manifest import DECODER, MODEL, OPTIMUM_DECODER, TENSORRT
from .runtime.sessions.onnxruntime import OnnxSession
from .runtime.sessions.openvino import OPENVINO, open_in_openvino

if TYPE_CHECKING:
    from .runtime.sessions.tensorrt import TensorRTSession


def load(
    folder: str | Path, *, provider: str | None = None, threads: int | None = None, native: bool | None = None
) -> OnnxSession | TensorRTSession:
    """Open an artifact folder: every hash is checked, and the session says which provider it really got.

    A folder that was written with `generate=True` opens as a decoder for `gatefx.generate`. One that was written for
    TensorRT opens where TensorRT, a GPU and the engine that its scripts build are.

    Args:
        folder: what `export` wrote.
        provider: "cpu" (if not given), "cuda", "tensorrt" or ONNX Runtime's own name; or "openvino", for one model over
            whole inputs. None and "tensorrt" alone open what was written for TensorRT.
        threads: of the engine's pool; None leaves it to the engine.
        native: run gatefx's operators by the native kernels; None: where they are built; True: or fail; False: never.

    Raises:
        ArtifactError: a missing, truncated or edited folder, or one whose engine is not built.
        InputError: a folder that holds gates instead of a model.
        MissingDependencyError: no TensorRT for a folder that was written for it.
        ProviderError: the provider is not what the session would run on, or has no native kernels that were asked for.
    """
    if native not in (None, True, False):
        raise InputError("native is a switch.", given=f"native={native!r}", expected="None, True or False")
    artifact = _opened(folder)
    if artifact.manifest.get("backend") == TENSORRT:
        return _load_engine(artifact, provider, threads=threads, native=native)
    if provider == OPENVINO:
        return _load_in_openvino(artifact, threads=threads, native=native)
    return _session_class(artifact.manifest["kind"]).open(
        artifact, provider="cpu" if provider is None else provider, threads=threads, native=native
    )


def _opened(folder: str | Path) -> Artifact:
    artifact = Artifact.open(folder)
    kind = artifact.manifest.get("kind")
    if kind not in (MODEL, DECODER):
        raise InputError(
            "The folder holds no model that gatefx runs.",
            given=f"{folder}, kind {kind!r}",
            expected="a folder that gatefx.export wrote",
            remedy="ORTModelForCausalLM.from_pretrained(folder) opens it; for gatefx export with generate=True"
            if kind == OPTIMUM_DECODER
            else "open saved gates with gatefx.from_pretrained(base_model, folder, example_inputs=batch)",
        )
    return artifact


def _session_class(kind: str) -> type[OnnxSession]:
    if kind == MODEL:
        return OnnxSession
    from .runtime.sessions.decoder import OnnxDecoder  # its cache is of torch's tensors

    return OnnxDecoder


def _load_in_openvino(artifact: Artifact, *, threads: int | None, native: bool | None) -> OnnxSession:
    if artifact.manifest["kind"] == DECODER:
        raise ProviderError(
            "Decoders with their cache run in ONNX Runtime only.",
            given=f"provider={OPENVINO!r}",
            expected="'cpu', 'cuda' or 'tensorrt'",
        )
    return open_in_openvino(artifact, threads=threads, native=native)


def _load_engine(
    artifact: Artifact, provider: str | None, *, threads: int | None, native: bool | None
) -> TensorRTSession:
    if provider not in (None, TENSORRT) or threads is not None or native:
        raise ProviderError(
            "The folder was written for TensorRT.",
            given=f"provider={provider!r}, threads={threads!r}, native={native!r}",
            expected="none of these options",
            remedy='leave them out, or export with backend="onnxruntime"',
        )
    from .runtime.sessions.tensorrt import TensorRTSession  # its tensors are torch's, on the GPU

    return TensorRTSession.open(artifact)
