"""The door to torch-tensorrt: dry runs that say which operators an engine takes, and the engine itself.

Written for torch-tensorrt 2.13, which needs a GPU to be imported. Networks are strongly typed; the sizes are those of
the folder's profile.
"""

from __future__ import annotations

import contextlib
import io
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx

from ...errors import ArtifactError, CaptureError, GatefxError, MissingDependencyError, ProviderError
from ..artifact import Artifact
from ..ops import token_ops, update_ops  # noqa: F401  # define the operators that programs of masklora and gatera call
from .build_engine import ENGINE_FILE, write_whole
from .build_files import PROGRAM_FILE, Profile, read_profile

VERSION = "2.13"
"""The torch-tensorrt that this file was written for; its settings and modules move between minor versions."""

_IN_ENGINE, _IN_TORCH = "_run_on_acc", "_run_on_gpu"
"""How torch-tensorrt names the parts of a graph."""


@dataclass(frozen=True)
class DryRun:
    """What torch-tensorrt would make of a program.

    Attributes:
        compiler: name and version of what said so; engines: parts of the graph that become an engine.
        converted: operators in these; in_torch: the names of those that no engine takes, sorted.
    """

    compiler: str
    engines: int
    converted: int
    in_torch: tuple[str, ...]


def dry_run(program: torch.export.ExportedProgram, profile: Profile) -> DryRun:
    """Everything of a compilation but the engines.

    Args:
        profile: of every input with open axes.

    Raises:
        CaptureError: torch-tensorrt cannot lower the program.
        MissingDependencyError, ProviderError: as `import_torch_tensorrt`.
    """
    torch_tensorrt = import_torch_tensorrt()
    with contextlib.redirect_stdout(io.StringIO()):  # the report for people, which is printed
        compiled = _compiled(torch_tensorrt, program, profile, dryrun=True)
    parts = {name: part for name, part in compiled.named_children() if isinstance(part, fx.GraphModule)}
    engines = [part for name, part in parts.items() if name.startswith(_IN_ENGINE)]
    rest = [compiled, *(part for name, part in parts.items() if name.startswith(_IN_TORCH))]
    return DryRun(
        compiler=f"torch-tensorrt {torch_tensorrt.__version__}",
        engines=len(engines),
        converted=sum(len(_operators(part)) for part in engines),
        in_torch=tuple(sorted({name for part in rest for name in _operators(part)})),
    )


def checked_dry_run(program: torch.export.ExportedProgram, profile: Profile) -> DryRun:
    """As `dry_run`, of a program that becomes one engine as a whole.

    Raises:
        CaptureError: an operator that no engine takes, or as `dry_run`.
    """
    found = dry_run(program, profile)
    if found.in_torch or found.engines != 1:
        raise _not_whole(found.engines, found.in_torch)
    return found


def build_engine(program: torch.export.ExportedProgram, profile: Profile) -> bytes:
    """The engine of the whole program, for this machine's GPU; arguments as for `dry_run`.

    Raises:
        CaptureError: an operator that no engine takes.
        MissingDependencyError, ProviderError: as `import_torch_tensorrt`.
    """
    torch_tensorrt = import_torch_tensorrt()
    compiled = _compiled(torch_tensorrt, program, profile, dryrun=False)
    kind = torch_tensorrt.dynamo.runtime.TorchTensorRTModule
    engines = [part for part in compiled.children() if isinstance(part, kind)]
    if len(engines) != 1 or _operators(compiled):
        raise _not_whole(len(engines), _operators(compiled))
    return bytes(engines[0].serialized_engine)


def main(folder: Path) -> int:
    """Build the engine of a folder that was exported with `through="torch_tensorrt"`; its script calls this."""
    output = folder / ENGINE_FILE
    try:
        artifact = Artifact.open(folder)
        engine = build_engine(read_program(artifact), read_profile(artifact))
    except GatefxError as error:
        print(error, file=sys.stderr)
        return 1
    write_whole(output, engine)
    print(f"written: {output}, {len(engine)} bytes, by torch-tensorrt")
    return 0


def read_program(artifact: Artifact) -> torch.export.ExportedProgram:
    """The program of a folder that was exported with `through="torch_tensorrt"`.

    Raises:
        ArtifactError: torch does not load it.
    """
    path = artifact.file(PROGRAM_FILE)
    try:
        return torch.export.load(path)
    except Exception as error:
        # torch's loader raises what it meets.
        raise ArtifactError(
            f"torch {torch.__version__} does not load the program.",
            given=f"{path}: {error}",
            expected="a program that this torch can read",
            remedy="Compare the versions in gatefx.json with the installed ones, or export again.",
        ) from error


def import_torch_tensorrt() -> Any:
    """The package, with gatefx's converters.

    Raises:
        MissingDependencyError: it is not installed, or in another version.
        ProviderError: it cannot be imported, as where there is no GPU.
    """
    try:
        import torch_tensorrt
    except ModuleNotFoundError as error:
        raise _missing(str(error)) from error
    except Exception as error:
        raise ProviderError(
            "torch-tensorrt cannot be imported here: it asks for a GPU and for TensorRT's libraries.",
            given=f"{type(error).__name__}: {error}",
            expected="an NVIDIA GPU, a build of torch for CUDA, and the package tensorrt",
            remedy='export without check=True, and build the engine where they are; or through="onnx"',
        ) from error
    if not torch_tensorrt.__version__.startswith(f"{VERSION}."):
        raise _missing(f"torch-tensorrt {torch_tensorrt.__version__}")
    from .torch_tensorrt_converters import register_converters

    register_converters()
    return torch_tensorrt


def _missing(given: str) -> MissingDependencyError:
    return MissingDependencyError(
        f"Engines through torch-tensorrt need the package 'torch-tensorrt' {VERSION}.",
        given=given,
        expected=f"torch-tensorrt {VERSION}",
        remedy=f'pip install "torch-tensorrt=={VERSION}.*" on a machine with a GPU, or export with through="onnx"',
    )


def _not_whole(engines: int, in_torch: Sequence[str]) -> CaptureError:
    return CaptureError(
        "torch-tensorrt does not take the whole graph.",
        given=f"{engines} engines, and in torch {', '.join(in_torch) or 'nothing'}",
        expected="one engine",
        remedy='Replace the operators named, or export with through="onnx".',
    )


def _compiled(
    torch_tensorrt: Any, program: torch.export.ExportedProgram, profile: Profile, *, dryrun: bool
) -> fx.GraphModule:
    # Attention stays in parts: the fused layer takes every mask for a causal one, or only some.
    try:
        with warnings.catch_warnings():
            # torch's own, about parts of itself
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            compiled: fx.GraphModule = torch_tensorrt.dynamo.compile(
                program,
                arg_inputs=[_input(torch_tensorrt, node, profile) for node in _placeholders(program)],
                dryrun=dryrun,
                require_full_compilation=not dryrun,
                min_block_size=1,
                decompose_attention=True,
                disable_tf32=True,
            )
    except Exception as error:
        raise CaptureError(
            "torch-tensorrt does not take the graph.",
            given=f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}",
            expected=f"a graph that torch-tensorrt {torch_tensorrt.__version__} compiles",
            remedy='See the error above this one, or export with through="onnx".',
        ) from error
    return compiled


def _placeholders(program: torch.export.ExportedProgram) -> list[fx.Node]:
    """What the program takes, without its weights."""
    names = set(program.graph_signature.user_inputs)
    return [node for node in program.graph.find_nodes(op="placeholder") if node.name in names]


def _input(torch_tensorrt: Any, node: fx.Node, profile: Profile) -> Any:
    value = node.meta["val"]
    if node.name not in profile:
        return torch_tensorrt.Input(shape=tuple(value.shape), dtype=value.dtype, name=node.name)
    sizes = profile[node.name]
    return torch_tensorrt.Input(
        min_shape=tuple(sizes["min"]),
        opt_shape=tuple(sizes["opt"]),
        max_shape=tuple(sizes["max"]),
        dtype=value.dtype,
        name=node.name,
    )


def _operators(module: fx.GraphModule) -> list[str]:
    """The names of the operators that the graph itself calls; picking from a tuple is none."""
    targets = [node.target for node in module.graph.nodes if node.op == "call_function"]
    return [str(target) for target in targets if isinstance(target, torch._ops.OpOverload)]
