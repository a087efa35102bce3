"""Lowering to ONNX: a hardened graph becomes an ONNX model that any runtime can execute.

The graph is exported once more with dynamic axes, translated by `torch.onnx`, and cleaned without changing a number.
Gated operators stay single nodes `gatefx::<Op>`, each with its body as a local function; weights keep the names they
have in torch. Nothing is executed here and nothing is written except by `save_onnx`.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...errors import CaptureError, GatefxError, InputError, missing_package
from ...runtime.native.library import native_status
from ..simplify.fuse_updates import FuseUpdates
from .direct_program import direct
from .dynamic_export import export_dynamic, first_line, output_places
from .onnx_attention import attend_on_rows
from .onnx_names import name_axes, name_nodes
from .onnx_reshapes import drop_idle_reshapes
from .shared_axes import state_shared_axes

if TYPE_CHECKING:
    import onnx_ir

DEFAULT_OPSET = 23
OPSETS = (18, 24)
"""First and last opset that lowering was tried with. 23 brings `Attention`, one kernel where 18 has ten nodes."""

_LEAST_BATCH = 2

MODEL_FILE = "model.onnx"
WEIGHTS_FILE = "model.onnx.data"


def lower_to_onnx(
    graph_module: torch.fx.GraphModule | nn.Module,
    example: Mapping[str, Tensor],
    output_names: Sequence[str],
    *,
    opset: int = DEFAULT_OPSET,
    overridable: Sequence[str] = (),
) -> onnx_ir.Model:
    """The ONNX model of `graph_module`, for any batch size and length.

    Args:
        graph_module: takes its inputs positionally in the order of `example`, returns a dict with the keys
            `output_names`; in eval mode.
        example: one batch of at least two examples. Axes 0 (and axes 1 of matrices) of equal size are taken to be
            the same axis; where they are not, give an example in which their sizes differ.
        output_names: names and order of the model's outputs.
        opset: version of standard ONNX.
        overridable: names of buffers that a caller may replace per call. They are inputs with a default.

    Raises:
        InputError: an example that cannot stand for other sizes.
        CaptureError: the graph cannot be exported, or an operator has no ONNX form; names the node and its module.
        GatefxError: an unknown opset, output or buffer name.
    """
    _check_request(graph_module, example, opset)
    program = direct(export_dynamic(_as_graph(graph_module, example), example))
    order = output_places(program, output_names)
    model = translate_program(program, opset)
    graph = model.graph
    for value, name in zip(graph.inputs, example, strict=True):
        value.name = name
    ordered = [graph.outputs[index] for index in order]
    graph.outputs.clear()
    graph.outputs.extend(ordered)
    _open_defaults(model, overridable)
    clean_model(model, opset)
    for value, name in zip(graph.outputs, output_names, strict=True):
        value.name = name
    _check_used(model, overridable)
    name_axes(model, list(example))
    name_nodes(model)
    return model


def save_onnx(model: onnx_ir.Model, folder: Path) -> None:
    """Write `model.onnx`, and beside it `model.onnx.data` with the weights, whatever their size."""
    import onnx_ir

    onnx_ir.save(model, folder / MODEL_FILE, external_data=WEIGHTS_FILE)
    # Readers of the folder expect the pair, also when every weight was small enough to stay in the graph.
    (folder / WEIGHTS_FILE).touch()


def _check_request(module: nn.Module, example: Mapping[str, Tensor], opset: int) -> None:
    if not isinstance(opset, int) or not OPSETS[0] <= opset <= OPSETS[1]:
        raise GatefxError(
            "This opset of ONNX is not supported.", given=repr(opset), expected=f"{OPSETS[0]} to {OPSETS[1]}"
        )
    training = [name or "(root)" for name, part in module.named_modules() if part.training]
    if training:
        raise GatefxError(
            "The graph is in training mode.",
            given=f"module {training[0]}",
            remedy="Call .eval() on it before lowering.",
        )
    for name, value in example.items():
        if value.dim() > 0 and value.shape[0] < _LEAST_BATCH:
            raise InputError(
                f"The example input {name!r} has a batch of {value.shape[0]}, which would fix the batch size.",
                given=f"{name} of shape {tuple(value.shape)}",
                expected="at least two examples, so that the batch axis can be told from a constant",
                remedy="Pass a batch of two or more; the exported model takes any batch, also one.",
            )


def _as_graph(module: nn.Module, example: Mapping[str, Tensor]) -> torch.fx.GraphModule:
    """A graph that shares its weights with `module` and states which axes of the inputs are the same."""
    if isinstance(module, torch.fx.GraphModule):
        graph_module = FuseUpdates(zero_bias=native_status("onnxruntime").active)(module).graph_module
    else:
        graph_module = export_dynamic(module, example).module(False)
    return state_shared_axes(graph_module, list(example.values()))


def translate_program(program: torch.export.ExportedProgram, opset: int) -> onnx_ir.Model:
    """What torch.onnx and gatefx's translations make of a program.

    Raises:
        CaptureError: an operator without ONNX form; MissingDependencyError: onnxscript is not installed.
    """
    from ...runtime.ops.onnx_functions import translations

    try:
        # Without gradients as in `export_dynamic`: an attention's layout depends on it, and views on the layout.
        with _quiet(), torch.no_grad():
            exported: Any = torch.onnx.export(
                program,
                args=(),
                dynamo=True,
                optimize=False,
                verbose=False,
                opset_version=opset,
                custom_translation_table=dict(translations()),
            )
    except torch.onnx.OnnxExporterError as error:
        raise _untranslatable(error, program) from error
    except ImportError as error:
        raise missing_package("onnxscript", extra="onnxruntime", feature="Lowering to ONNX") from error
    return exported.model


@contextmanager
def _quiet() -> Iterator[None]:
    """Neither notes about packages that no gatefx graph needs, nor torch's warnings about its own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logger.setLevel(level)


def _untranslatable(error: BaseException, program: torch.export.ExportedProgram) -> CaptureError:
    """The innermost cause, with the graph's node and the module it came from."""
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    named = re.search(r"translating node %(\w+)", " ".join(str(cause) for cause in causes))
    with _quiet():
        where = _place(named[1], program) if named else "the graph"
    return CaptureError(
        f"No ONNX form for {where}.",
        given=first_line(causes[-1]),
        expected="operators that torch.onnx or gatefx can translate",
        remedy="Replace the operator in that module, or keep the model in torch.",
    )


def _place(name: str, program: torch.export.ExportedProgram) -> str:
    """The node `name` in words, with its operator and module where they can be found."""
    node = _node(name, program.graph)
    if node is None:
        # The translator works on a decomposed graph, which has nodes that the exported one does not have.
        node = _node(name, program.run_decompositions().graph)
    if node is None:
        return f"node {name!r}"
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    module = f" in module {stack[-1][0] or '(root)'!r}" if stack else ""
    return f"node {name!r} ({node.target}){module}"


def _node(name: str, graph: torch.fx.Graph) -> torch.fx.Node | None:
    return next((node for node in graph.nodes if node.name == name), None)


def _open_defaults(model: onnx_ir.Model, overridable: Sequence[str]) -> None:
    """Make initializers inputs too, so that a caller may feed another value and need not feed any."""
    for name in overridable:
        value = model.graph.initializers.get(name)
        if value is None:
            raise GatefxError(
                "A buffer that should be replaceable at run time is not in the exported graph.",
                given=repr(name),
                expected="the dotted name of a buffer that the outputs depend on",
                remedy="Check the name, and that the graph reads the buffer as a tensor and not as a number.",
            )
        model.graph.inputs.append(value)


def clean_model(model: onnx_ir.Model, opset: int) -> None:
    """Exact clean-ups only: constants of constants, identities, repeated and unused nodes. No weight is folded."""
    import onnx_ir
    from onnx_ir.passes import common
    from onnxscript.optimizer import fold_constants

    from ...runtime.ops.onnx_functions import DOMAIN, bodies_needed

    weights = set(model.graph.initializers.values())
    fold_constants(model, should_fold=lambda node: False if weights.intersection(node.inputs) else None)
    common.IdentityEliminationPass()(model)
    common.CommonSubexpressionEliminationPass()(model)
    drop_idle_reshapes(model)
    attend_on_rows(model)
    common.RemoveUnusedNodesPass()(model)
    common.OutputFixPass()(model)
    used = [node.op_type for node in model.graph if node.domain == DOMAIN]
    for proto in bodies_needed(used, opset).values():
        function = onnx_ir.from_proto(proto)
        model.functions[function.identifier()] = function
    common.RemoveUnusedOpsetsPass()(model)


def _check_used(model: onnx_ir.Model, overridable: Sequence[str]) -> None:
    unread = [name for name in overridable if not model.graph.initializers[name].uses()]
    if unread:
        raise GatefxError(
            "A buffer that should be replaceable at run time has no influence on the outputs.", given=", ".join(unread)
        )
