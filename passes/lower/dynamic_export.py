"""Exports a graph once more, for any batch size and length: where every lowering begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import CaptureError, GatefxError
from ..graph.signature import constant_size


def export_dynamic(module: nn.Module, example: Mapping[str, Tensor]) -> torch.export.ExportedProgram:
    """The program of `module`, which takes its inputs positionally in the order of `example`.

    Raises:
        CaptureError: a size that is fixed, or a branch on data.
    """
    axes = tuple(dict.fromkeys(range(value.dim()), torch.export.Dim.AUTO) for value in example.values())
    return export_program(module, tuple(example.values()), axes)


def export_program(
    module: nn.Module, inputs: Sequence[Tensor], axes: Sequence[Mapping[int, Any]]
) -> torch.export.ExportedProgram:
    """The program of `module` without gradients.

    Args:
        inputs: what it takes; axes: of each input, those that vary, and how, in the words of `torch.export`.

    Raises:
        CaptureError: a size that is fixed, or a branch on data.
    """
    try:
        with torch.no_grad():
            program = torch.export.export(module, tuple(inputs), dynamic_shapes=tuple(axes), strict=False)
    except Exception as error:
        raise CaptureError(
            "The graph cannot be exported for dynamic batch and length.",
            given=first_line(error),
            expected="operators whose sizes follow from the inputs' sizes",
            remedy="See the error above this one for the line of the model that fixes a size or branches on data.",
        ) from error
    _settle_sizes(program)
    return program


def _settle_sizes(program: torch.export.ExportedProgram) -> None:
    """Say of inputs' axes that turned out to be constant that they are: torch.onnx looks for plain numbers."""
    for node in program.graph.find_nodes(op="placeholder"):
        value = node.meta.get("val")
        sizes = [(size, constant_size(size)) for size in value.shape] if isinstance(value, Tensor) else []
        if any(known is not None and size is not known for size, known in sizes):
            with value.fake_mode:
                node.meta["val"] = value.new_empty([size if known is None else known for size, known in sizes])


def output_places(program: torch.export.ExportedProgram, output_names: Sequence[str]) -> list[int]:
    """For each wanted output, its place among the exported graph's flat outputs.

    Raises:
        GatefxError: the graph answers otherwise.
    """
    spec = program.call_spec.out_spec
    places = torch.utils._pytree.tree_unflatten(list(range(spec.num_leaves)), spec) if spec is not None else None
    if isinstance(places, dict) and all(isinstance(place, int) for place in places.values()):
        if sorted(places) == sorted(output_names):
            return [places[name] for name in output_names]
        given = f"a dict of {list(places)}"
    else:
        given = f"the structure {spec}"
    raise GatefxError(
        "The graph's outputs are not those to be exported.",
        given=given,
        expected=f"a flat dict of tensors with the keys {list(output_names)}",
    )


def first_line(error: BaseException) -> str:
    """The error's kind and the first line of what it says."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
