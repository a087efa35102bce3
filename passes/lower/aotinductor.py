"""Lowering to AOTInductor: a hardened graph becomes one `.pt2` file of machine code and weights for torch alone.

    graph ─export─▶ program of ATen operators ─Inductor, C++ compiler─▶ model.pt2 ─torch._inductor.aoti_load_package

The process that loads the file needs torch and no gatefx. Sound because only operators of torch are let through.

Refused: graphs with operators of gatefx, which no other process has; they are named.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, fx

from ...errors import ArtifactError, CaptureError, InputError, MissingDependencyError
from ...runtime.capabilities import cxx_compiler
from .dynamic_export import export_dynamic, first_line
from .shared_axes import state_shared_axes

SUFFIX = ".pt2"

_NAMESPACE = "gatefx"
_INDUCTOR_OPTIONS = {"cpp.dynamic_threads": True}
"""As many threads as the loading process has; the default bakes in those of the process that compiles."""

_ONNX = 'backend="onnxruntime", which holds these operators as functions'


def save_aotinductor(
    graph_module: fx.GraphModule, example: Mapping[str, Tensor], path: Path, *, overwrite: bool = False
) -> Path:
    """Write `path`, whole or not at all, for any batch size and length.

    Args:
        graph_module: takes its inputs positionally in the order of `example`, returns a dict; the loaded model too.
        example: one batch of at least two examples, see `lower_to_onnx`.
        path: of the file, ending in `.pt2`; overwrite: replace a file that is already there.

    Raises:
        ArtifactError: another ending, a file that exists, or one that cannot be written.
        MissingDependencyError: no C++ compiler.
        InputError: operators of gatefx, or a model that is not on the CPU.
        CaptureError: the graph cannot be exported, or Inductor cannot compile it.
    """
    _check_target(path, overwrite)
    _check_machine(example)
    program = export_dynamic(state_shared_axes(graph_module, list(example.values())), example)
    _check_operators(program)
    with _staging(path) as staged:
        _compile(program, staged)
        _check_target(path, overwrite)
        os.replace(staged, path)
    return path


def gatefx_operators(program: torch.export.ExportedProgram) -> tuple[str, ...]:
    """The names of the program's operators that only gatefx has, also in graphs within the graph; sorted."""
    graphs = (module.graph for module in program.graph_module.modules() if isinstance(module, fx.GraphModule))
    targets = (node.target for graph in graphs for node in graph.nodes if node.op == "call_function")
    operators = (target for target in targets if isinstance(target, torch._ops.OpOverload))
    return tuple(sorted({op._schema.name for op in operators if op.namespace == _NAMESPACE}))


def _check_target(path: Path, overwrite: bool) -> None:
    if path.suffix != SUFFIX:
        raise ArtifactError(
            "AOTInductor writes one file.", given=str(path), expected=f"a name that ends in {SUFFIX}, as model{SUFFIX}"
        )
    if os.path.lexists(path) and not (overwrite and path.is_file()):
        raise ArtifactError(
            "The target exists; nothing was written.",
            given=str(path),
            expected="a name that is not taken",
            remedy="Choose another name, or pass overwrite=True to replace a file.",
        )


def _check_machine(example: Mapping[str, Tensor]) -> None:
    devices = sorted({value.device.type for value in example.values()} - {"cpu"})
    if devices:
        raise InputError(
            "Only models on the CPU are compiled by AOTInductor.",
            given=f"a model on {', '.join(devices)}",
            expected="a model on cpu",
            remedy='fast.cpu() first, or backend="onnxruntime"',
        )
    _, reason = cxx_compiler()
    if reason:
        raise MissingDependencyError(
            "AOTInductor needs a C++ compiler.",
            given=reason,
            expected="a compiler that torch's Inductor calls",
            remedy='apt install g++, or name a compiler in $CXX; backend="onnxruntime" needs none',
        )


def _check_operators(program: torch.export.ExportedProgram) -> None:
    names = gatefx_operators(program)
    if not names:
        return
    tokens = any(name.endswith("_tokens") for name in names)
    raise InputError(
        "The graph holds operators that a process without gatefx does not have.",
        given=", ".join(names),
        expected="operators of torch alone",
        # Where tokens are dropped, the masked form selects them with the same operators.
        remedy=_ONNX if tokens else f'gatefx.optimize(…, forms="masked"), or {_ONNX}',
    )


@contextmanager
def _staging(path: Path) -> Iterator[Path]:
    """A file of the same name, beside `path`; what is left of it, and of new folders, goes when the block ends."""
    made = [parent for parent in path.parents if not parent.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.writing.", dir=path.parent) as folder:
            yield Path(folder) / path.name
    except OSError as error:
        raise ArtifactError("The file cannot be written.", given=str(path), expected=str(error)) from error
    finally:
        if not path.exists():
            for parent in made:
                with contextlib.suppress(OSError):
                    parent.rmdir()


def _compile(program: torch.export.ExportedProgram, file: Path) -> None:
    from torch._inductor import aoti_compile_and_package

    try:
        with torch.no_grad(), warnings.catch_warnings():
            # torch's own, about parts of itself
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            aoti_compile_and_package(program, package_path=str(file), inductor_configs=dict(_INDUCTOR_OPTIONS))
    except Exception as error:
        raise CaptureError(
            "AOTInductor cannot compile the graph.",
            given=first_line(error),
            expected="operators that torch's Inductor lowers, and a C++ compiler that works",
            remedy='See the error above this one, or export with backend="onnxruntime".',
        ) from error
