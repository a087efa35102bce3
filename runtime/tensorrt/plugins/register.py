"""Registers the plugins of a folder with TensorRT: before its ONNX model is parsed, and only when asked."""

from __future__ import annotations

from pathlib import Path

from .kernels import Kernels


def register_plugins(folder: Path) -> int:
    """Register the plugins that `folder` has kernels for, with the TensorRT of this process, for its whole life.

    Returns:
        How many layers of the folder's model must become plugins.

    Raises:
        ImportError: no TensorRT here, or one without `tensorrt.plugin`.
        OSError, ValueError: the folder holds no table of kernels.
        RuntimeError: this process has registered plugins before, of this folder or another.
    """
    import tensorrt.plugin

    from . import gated_lora, routed_rows, token_gated_lora
    from .launch import NAMESPACE

    kernels = Kernels.read(folder)
    if NAMESPACE in vars(tensorrt.plugin.op):
        raise RuntimeError("gatefx's plugins are registered in this process; build each folder in a process of its own")
    present = {kernel.operator for kernel in kernels.table}
    for plugin in (gated_lora, token_gated_lora, routed_rows):
        if plugin.OPERATOR in present:
            plugin.register(kernels)
    return sum(kernel.nodes for kernel in kernels.table)
