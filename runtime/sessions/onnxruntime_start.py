"""Start ONNX Runtime on one model of an artifact. The provider that was asked for is the one that runs, or it fails."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ArtifactError, CaptureError, InputError, ProviderError, missing_package
from ..artifact import Artifact
from ..native.library import NativeStatus, native_status
from ..native.session_model import native_model

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}

_LIBRARIES = {
    PROVIDERS["cuda"]: "libonnxruntime_providers_cuda.so",
    PROVIDERS["tensorrt"]: "libonnxruntime_providers_tensorrt.so",
}

WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
"""The option that says where a model in memory has its weights."""

_ERRORS_ONLY = 3


def start(
    artifact: Artifact, file: str, *, provider: str, threads: int | None, native: bool | None
) -> tuple[Any, str, NativeStatus]:
    """(a session of ONNX Runtime on one model of an artifact, the provider that runs it, what became of the kernels).

    Args, Raises: as `OnnxSession.open`.
    """
    runtime = onnxruntime_module()
    options = session_options(runtime, threads)
    wanted = _available(runtime, provider)
    used = _register_native(options, wanted, native)
    path = artifact.file(file)
    try:
        model = native_model(path) if used.active else None
        if model is not None:
            options.add_session_config_entry(WEIGHTS_FOLDER, str(path.parent))
            used = replace(used, replaced=model.replaced)
        session, obtained = _started(runtime, str(path) if model is None else model.protobuf, options, wanted)
    except (ArtifactError, ProviderError):
        raise
    except Exception as error:
        # ONNX Runtime's errors have no common base but Exception.
        raise ArtifactError(
            f"ONNX Runtime {runtime.__version__} does not load {file} of {artifact.path}.",
            given=str(error),
            expected="a model that this version and provider support",
            remedy="Compare the versions in gatefx.json with the installed ones.",
        ) from error
    return session, obtained, used


def full_name(provider: str) -> str:
    """ONNX Runtime's name of a provider that has a short one here."""
    return PROVIDERS.get(provider, provider)


def start_in_memory(model: bytes, weights: Mapping[str, np.ndarray], *, provider: str, threads: int) -> Any:
    """A session of ONNX Runtime on a model that is no file.

    Args:
        model: protobuf; weights: what it reads from outside itself, by name. The session reads them where they are,
            and keeps what it makes of them.
        provider, threads: as `OnnxSession.open`. Native kernels are used where they are built.

    Raises:
        MissingDependencyError, ProviderError: as `OnnxSession.open`; CaptureError: ONNX Runtime refuses the model.
    """
    runtime = onnxruntime_module()
    options = session_options(runtime, threads)
    wanted = _available(runtime, provider)
    _register_native(options, wanted, None)
    values = [runtime.OrtValue.ortvalue_from_numpy(value) for value in weights.values()]
    try:
        options.add_external_initializers(list(weights), values)
        return _started(runtime, model, options, wanted)[0]
    except ProviderError:
        raise
    except Exception as error:
        raise CaptureError(
            f"ONNX Runtime {runtime.__version__} does not take the graph.",
            given=str(error),
            expected="operators and types that this version and provider support",
        ) from error


def session_options(runtime: Any, threads: int | None) -> Any:
    """Options of a session of ONNX Runtime; None leaves the threads to it.

    Raises:
        InputError: a number of threads below one.
    """
    options = runtime.SessionOptions()
    # Its warnings are about optimisations that a replaceable buffer prevents, which is what it is for.
    options.log_severity_level = _ERRORS_ONLY
    if threads is not None:
        options.intra_op_num_threads, options.inter_op_num_threads = checked_threads(threads), 1
    return options


def checked_threads(threads: int) -> int:
    """`threads`, if they are a count.

    Raises:
        InputError: they are not.
    """
    if not isinstance(threads, int) or isinstance(threads, bool) or threads < 1:
        raise InputError("The number of threads is no count.", given=repr(threads), expected="1 or more")
    return threads


def onnxruntime_module() -> Any:
    """The package.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise missing_package("onnxruntime", extra="onnxruntime", feature="Running an exported model") from error
    return onnxruntime


def _available(runtime: Any, provider: str) -> str:
    """ONNX Runtime's name of a provider that this build has.

    Raises:
        ProviderError: it does not.
    """
    wanted = full_name(provider)
    if wanted not in runtime.get_available_providers():
        raise _not_obtained(wanted, f"this build of ONNX Runtime has {', '.join(runtime.get_available_providers())}")
    return wanted


def _not_obtained(wanted: str, found: str) -> ProviderError:
    gpu = wanted in (PROVIDERS["cuda"], PROVIDERS["tensorrt"])
    return ProviderError(
        f"The provider {wanted} is not what would run the model.",
        given=found,
        expected=wanted,
        remedy="pip uninstall onnxruntime && pip install 'gatefx[onnxruntime-gpu]' on a machine with the GPU's driver "
        "and libraries, or ask for provider='cpu'."
        if gpu
        else f"Ask for one of {', '.join(PROVIDERS)}, or a provider that this build has.",
    )


def _register_native(options: Any, wanted: str, native: bool | None) -> NativeStatus:
    """Give the session the native kernels, if they are wanted and there."""
    status = _native_for(wanted) if native in (None, True) else NativeStatus(False, "native=False")
    if status.active:
        try:
            options.register_custom_ops_library(str(status.library))
        except Exception as error:  # noqa: BLE001  # ONNX Runtime's errors have no common base but Exception
            status = NativeStatus(False, f"ONNX Runtime does not take {status.library}: {error}", status.library)
    if native is True and not status.active:
        raise ProviderError(
            "The native kernels that were asked for cannot be used.",
            given=status.reason,
            expected="the library for ONNX Runtime, and provider='cpu'",
            remedy="Run `gatefx build-native`, or pass native=None to run the operators by their ONNX bodies.",
        )
    return status


def _native_for(wanted: str) -> NativeStatus:
    if wanted != PROVIDERS["cpu"]:
        return NativeStatus(False, f"they run on the CPU, and the provider is {wanted}")
    return native_status("onnxruntime")


def _started(runtime: Any, model: str | bytes, options: Any, wanted: str) -> tuple[Any, str]:
    """(a session on a file or a protobuf, its provider).

    Raises:
        ProviderError: it fell back to another provider; and whatever ONNX Runtime raises.
    """
    # Accelerators leave shape arithmetic to the CPU, so it stands behind them; that is no fallback of the model.
    providers = list(dict.fromkeys([wanted, PROVIDERS["cpu"]]))
    session = runtime.InferenceSession(model, options, providers=providers)
    session.disable_fallback()
    obtained = session.get_providers()[0]
    if obtained != wanted:
        missing = _unloadable(Path(runtime.__file__).parent, wanted)
        raise _not_obtained(wanted, f"ONNX Runtime fell back to {obtained}{missing and f': {missing}'}")
    return session, obtained


def _unloadable(package: Path, provider: str) -> str:
    """What the system says of the provider's library in ONNX Runtime's package, which names the first one it lacks."""
    library = package / "capi" / _LIBRARIES.get(provider, "")
    if not library.is_file():
        return ""
    try:
        ctypes.CDLL(str(library), mode=os.RTLD_LAZY)
    except OSError as error:
        return str(error)
    return ""
