"""Triton kernels compiled ahead of time for GPUs that are not here, and what their machine code needs of one.

`triton.compile` and the assembler that ships with Triton need no device, so PTX, machine code, registers and shared
memory are facts here. How fast a kernel is, is not one. Kernels must not be interpreted in the same process.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .ptx import Element, parameter_kinds, without_last_parameters
from .triton_gated_lora import gated_lora_kernel
from .triton_routed_linear import routed_linear_kernel
from .triton_tiles import BLOCK_IN, BLOCK_OUT, BLOCK_ROWS, block_out, padded_rank
from .triton_token_gated_lora import token_gated_lora_kernel

_DTYPES: Mapping[str, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
ARCHITECTURES = (80, 86, 89, 90, 120)
"""Compute capabilities, times ten: Ampere (data centre, consumer), Ada, Hopper, Blackwell (consumer)."""

MOST_REGISTERS = 255
SHARED_MEMORY = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 120: 101_376}
"""Bytes of shared memory that one block may ask for (CUDA C++ Programming Guide, compute capabilities)."""

_OPTIONS = {"enable_fp_fusion": True}
"""What Triton's default is today, said because the next version changes it."""

_HIDDEN = 2
"""Triton ends every signature with two scratch pointers; a caller passes null where the scratch sizes are 0."""

_FLOATS: Mapping[str, tuple[Any, tuple[str, ...], Mapping[str, str]]] = {
    "gated_lora": (gated_lora_kernel, ("base", "x", "a", "b", "scale", "y"), {"indices": "*i64"}),
    "token_gated_lora": (
        token_gated_lora_kernel,
        ("base", "x", "a", "b", "gram", "threshold", "scale", "y"),
        {},
    ),
    "routed_linear": (
        routed_linear_kernel,
        ("x", "weight0", "weight1", "bias", "y"),
        {"choice": "*i8", "order": "*i64"},
    ),
}
KERNELS = tuple(_FLOATS)


@dataclass(frozen=True)
class Compiled:
    """One kernel for one GPU.

    Args:
        name: of the entry point; ptx: its text, loadable by any driver that knows its version.
        parameters: how many the entry declares; hidden: how many of these are Triton's own.
        registers: of one thread; stack, spilled: bytes of one thread in local memory.
        shared: bytes of one block; warps: of one block.
        tensor_core_instructions: how many the machine code has.
    """

    name: str
    ptx: str
    parameters: int
    hidden: int
    registers: int
    stack: int
    spilled: int
    shared: int
    warps: int
    tensor_core_instructions: int


def compile_ahead(
    kernel: str, element: Element, rank: int, architecture: int, sizes: tuple[int, int] = (768, 768)
) -> Compiled:
    """Compile `kernel` for d_in, d_out = `sizes` without a device.

    Args:
        kernel: one of `KERNELS`; element: type of states and weights.
        rank: of the adapter (no matter for routed_linear); architecture: one of `ARCHITECTURES`.
    """
    function, floats, others = _FLOATS[kernel]
    constants = constants_of(kernel, element, rank, sizes)
    types = {f"{name}_ptr": f"*{element}" for name in floats} | {f"{name}_ptr": t for name, t in others.items()}
    signature = {name: types.get(name, "constexpr" if name in constants else "i32") for name in function.arg_names}
    aligned = {
        (place,): [["tt.divisibility", 16]] for place, kind in enumerate(signature.values()) if kind.startswith("*")
    }
    source = ASTSource(fn=function, signature=signature, constexprs=constants, attrs=aligned)
    with triton.knobs.compilation.scope():
        triton.knobs.compilation.disable_line_info = True  # it holds paths of this machine
        built = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=_OPTIONS)
    return _measured(built)


def constants_of(
    kernel: str, element: Element, rank: int, sizes: tuple[int, int], *, upcast: bool = False
) -> dict[str, int | bool]:
    """What `kernel` is compiled with, by the names of its parameters: sizes of the layer, and those of a tile."""
    function, _, _ = _FLOATS[kernel]
    tile = {"UPCAST": upcast, "ROWS": BLOCK_ROWS, "IN": BLOCK_IN, "OUT": BLOCK_OUT}
    if "RANK" in function.arg_names:
        padded = padded_rank(rank)
        tile |= {"RANK": rank, "PADDED": padded, "OUT": block_out(_DTYPES[element], padded)}
    return {"D_IN": sizes[0], "D_OUT": sizes[1], **tile}


def without_hidden(compiled: Compiled, architecture: int) -> Compiled:
    """`compiled` without Triton's own parameters, for callers that pass nothing else, assembled anew.

    Args:
        architecture: to assemble for, one of `ARCHITECTURES`: the one it was compiled for, or from 80 a later one.

    Raises:
        GatefxError: the kernel uses scratch memory.
    """
    ptx = without_last_parameters(compiled.ptx, _HIDDEN)
    with tempfile.TemporaryDirectory() as folder:
        text, code = Path(folder) / "kernel.ptx", Path(folder) / "kernel.cubin"
        text.write_text(ptx)
        _tool("ptxas", f"-arch=sm_{architecture}", str(text), "-o", str(code))
        needs = _needs(code.read_bytes())
    cut = replace(compiled, ptx=ptx, parameters=len(parameter_kinds(ptx)), hidden=0)
    return replace(cut, **needs)  # type: ignore[arg-type]  # numbers only, for the fields they name


def _measured(built: Any) -> Compiled:
    ptx, metadata = built.asm["ptx"], built.metadata
    scratch = metadata.global_scratch_size + metadata.profile_scratch_size
    return Compiled(
        name=metadata.name,
        ptx=ptx,
        parameters=len(parameter_kinds(ptx)),
        hidden=_HIDDEN if scratch == 0 else 0,
        shared=metadata.shared,
        warps=metadata.num_warps,
        **_needs(built.asm["cubin"]),
    )


def _needs(cubin: bytes) -> dict[str, int]:
    """What machine code needs of a GPU, field by field of `Compiled`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage = _tool("cuobjdump", "--dump-resource-usage", str(path))
        code = _tool("nvdisasm", "-c", str(path))
    return {
        "registers": _usage(usage, "REG"),
        "stack": _usage(usage, "STACK"),
        "spilled": _usage(usage, "LOCAL"),
        "tensor_core_instructions": len(re.findall(r"\b(?:HMMA|HGMMA|QMMA|UTCHMMA)\b", code)),
    }


def _usage(text: str, name: str) -> int:
    return int(re.search(rf"\b{name}:(\d+)", text)[1])  # type: ignore[index]  # the tool prints every field


def _tool(name: str, *arguments: str) -> str:
    """What one of the tools that ship with Triton prints."""
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([str(path), *arguments], check=True, capture_output=True, text=True).stdout


def faults(compiled: Compiled, element: Element, architecture: int) -> tuple[str, ...]:
    """What speaks against running `compiled` on `architecture`; nothing if it may."""
    found: list[str] = []
    if compiled.stack or compiled.spilled:
        found.append(f"{compiled.stack} bytes of stack and {compiled.spilled} of spilled registers a thread")
    if compiled.registers > MOST_REGISTERS:
        found.append(f"{compiled.registers} registers a thread")
    if compiled.shared > SHARED_MEMORY[architecture]:
        found.append(f"{compiled.shared} bytes of shared memory, more than {SHARED_MEMORY[architecture]}")
    if element != "fp32" and not compiled.tensor_core_instructions:
        found.append("no tensor-core instruction")
    return tuple(found)
