"""What a folder holds beside a model with plugins: their kernels as PTX, and what registers them where TensorRT is.

plugins/*.py          a copy of `plugins/` here
plugins/source/       a copy of `plugin_source/` here: the same plugins in C++, for trtexec and programs without Python
plugins/*.ptx         one kernel each, compiled for Ampere; the driver of a later GPU compiles it further
plugins/kernels.tsv   what each kernel answers and how it is launched, see `plugins/kernels.py`
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import CaptureError, missing_package
from ..ops.ptx import Element
from . import plugins
from .build_engine import PLUGINS_FOLDER
from .plugins.kernels import TABLE_FILE, Kernel, written_table

SOURCE_FOLDER = "source"
SOURCES = Path(__file__).with_name("plugin_source")
ARCHITECTURE = 80
"""What is compiled for: PTX of compute capability 8.0 is taken by every later GPU, that of 9.0 and more is not."""

MOST_SHARED = 48 * 1024
"""Bytes that a block may have without its caller raising the limit of the kernel."""

OPERATORS = {"GatedLora": "gated_lora", "TokenGatedLora": "token_gated_lora", "RoutedRows": "routed_linear"}
"""ONNX operator, which names the plugin → kernel in `runtime/ops/triton_ahead.py`."""

MOST_RANK = 64


@dataclass(frozen=True)
class Needed:
    """A kernel that a model calls for.

    Args:
        operator: one of `OPERATORS`; element: "fp32", "fp16" or "bf16".
        d_in, d_out, rank: sizes of the layer, the rank 0 where the operator has none; nodes: how many are of this size.
    """

    operator: str
    element: Element
    d_in: int
    d_out: int
    rank: int
    nodes: int


def write_plugins(folder: Path, needed: Sequence[Needed]) -> None:
    """Write `plugins/` into `folder`.

    Raises:
        MissingDependencyError: no Triton, which compiles the kernels.
        CaptureError: a kernel that no GPU would run well, by its machine code.
    """
    target = folder / PLUGINS_FOLDER
    target.mkdir()
    table = [_compiled(kernel, target) for kernel in needed]
    (target / TABLE_FILE).write_text(written_table(table), encoding="utf-8")
    for source in sorted(Path(plugins.__file__).parent.glob("*.py")):
        shutil.copyfile(source, target / source.name)
    shutil.copytree(SOURCES, target / SOURCE_FOLDER)


def _compiled(needed: Needed, target: Path) -> Kernel:
    """Compile one kernel and write its text."""
    try:
        from ..ops.triton_ahead import compile_ahead, constants_of, faults, without_hidden
    except ImportError as error:
        raise missing_package("triton", extra="triton", feature="Compiling kernels for TensorRT's plugins") from error
    name, sizes = OPERATORS[needed.operator], (needed.d_in, needed.d_out)
    made = compile_ahead(name, needed.element, needed.rank, ARCHITECTURE, sizes)
    made = without_hidden(made, ARCHITECTURE)
    against = [*faults(made, needed.element, ARCHITECTURE)]
    if made.shared > MOST_SHARED:
        against.append(f"{made.shared} bytes of shared memory, more than {MOST_SHARED}")
    if against:
        raise CaptureError(
            f"The kernel of {needed.operator} is not fit for a GPU at this size.",
            given=f"{needed}: {'; '.join(against)}",
            expected="a kernel within the limits of one block, without spills",
            remedy="export without plugins",
        )
    tile = constants_of(name, needed.element, needed.rank, sizes)
    file = f"{name}_{needed.element}_{needed.d_in}_{needed.d_out}_{needed.rank}.ptx"
    (target / file).write_text(made.ptx, encoding="utf-8")
    return Kernel(
        operator=needed.operator,
        element=needed.element,
        d_in=needed.d_in,
        d_out=needed.d_out,
        rank=needed.rank,
        nodes=needed.nodes,
        threads=32 * made.warps,
        shared=made.shared,
        rows=tile["ROWS"],
        columns=tile["OUT"],
        entry=made.name,
        file=file,
    )
