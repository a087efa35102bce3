"""The native library as the CPU kernels of the torch operators."""

from __future__ import annotations

from functools import cache

import torch

from .library import NativeLibrary, NativeStatus, native_status


@cache
def use_torch_kernels() -> NativeStatus:
    """Run the operators `gatefx::*` on CPU tensors by the native kernels, if the library is there.

    It holds for the process; the operators' gradients and their answers on other devices stay as they are. A call
    with tensors that do not fit together then raises RuntimeError, as torch's own kernels do.
    """
    from ..ops import schema, update_ops  # noqa: F401  # the operators must be defined first

    status = native_status("torch")
    if status.active and status.library is not None:
        torch.ops.load_library(str(status.library))  # type: ignore[no-untyped-call]
        NativeLibrary(status.library).serve_torch()
    return status
