"""What the plugins share: their namespace, the types they take, and what TensorRT is told to launch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorrt as trt
import tensorrt.plugin as trtp

from .kernels import Kernel, Kernels

NAMESPACE = "gatefx"
"""Of the plugins, and of the ONNX nodes' attribute `plugin_namespace`."""

FLOATS = "FP32|FP16|BF16"
"""All floats of a plugin have one of these types, the same one."""

_ELEMENTS = {trt.DataType.FLOAT: "fp32", trt.DataType.HALF: "fp16", trt.DataType.BF16: "bf16"}


def check_one_type(operator: str, *floats: Any) -> None:
    """Refuse tensors of several types, or of one without kernel.

    Raises:
        TypeError: with the types.
    """
    types = [tensor.dtype for tensor in floats]
    if len(set(types)) != 1 or types[0] not in _ELEMENTS:
        raise TypeError(f"{operator} takes floats of one type, {FLOATS}, and got {', '.join(map(str, types))}")


def size(tensor: Any, axis: int) -> int:
    """The size of an axis that every batch shares.

    Raises:
        RuntimeError: by TensorRT, of an axis that is open.
    """
    return int(tensor.shape_expr[axis].constant_value())


def count(sizes: Sequence[Any]) -> Any:
    """The product of the sizes, 1 if there is none, as an expression that TensorRT evaluates for each batch."""
    total = trtp.SymInt32(1) if not sizes else sizes[0]
    for further in sizes[1:]:
        total = total * further
    return total


def kernel_for(kernels: Kernels, operator: str, x: Any, sizes: tuple[int, int, int]) -> Kernel:
    """The kernel for the type of `x` and `sizes` (d_in, d_out, rank).

    Raises:
        LookupError: there is none.
    """
    return kernels.find(operator, _ELEMENTS[x.dtype], sizes)


def launched(kernels: Kernels, kernel: Kernel, grid: tuple[Any, Any], tokens: Any) -> tuple[str, str, Any, Any]:
    """What an ahead-of-time plugin answers: entry, PTX, launch parameters, and the integers between inputs and outputs.

    Args:
        grid: blocks along x and y; tokens: the kernel's one integer.
    """
    parameters = trtp.KernelLaunchParams()
    parameters.grid_x, parameters.grid_y = grid
    parameters.block_x = kernel.threads
    parameters.shared_mem = kernel.shared
    extras = trtp.SymIntExprs(1)
    extras[0] = trtp.SymInt32(tokens)
    return kernel.entry, kernels.ptx(kernel), parameters, extras
