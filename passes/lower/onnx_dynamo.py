"""Lowering of what Dynamo traced to ONNX: for one compiled graph, in memory, its weights left where they are.

    tensor_graph ─export─▶ program ─torch.onnx─▶ ONNX whose weights are names, to be filled by torch's own memory

Sound because only graphs that compute their answers and nothing else are let through.

Refuses graphs that write to what they were given, draw random numbers, or hold types that numpy lacks.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch.export import Dim, ExportedProgram

from ...errors import CaptureError
from .dynamic_export import export_program
from .dynamo_graph import TensorGraph, tensor_graph
from .onnx import DEFAULT_OPSET, clean_model, translate_program

_ELSEWHERE = "weights"  # any name: the session is given the tensors themselves
_DTYPES = frozenset({
    torch.float16, torch.float32, torch.float64, torch.bool,
    torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64,
})  # fmt: skip
_SWITCHES = ("train", "training", "dropout_p", "p")
"""Arguments that switch an operator's random numbers off where they are false or 0."""


@dataclass(frozen=True)
class TracedModel:
    """A traced graph as ONNX.

    Attributes:
        graph: where in a call its inputs, weights and numbers stand.
        model: the protobuf; weights are external data of no file.
        inputs: names in the order of `graph.fed`.
        weights: names of weights that the model reads.
    """

    graph: TensorGraph
    model: bytes
    inputs: tuple[str, ...]
    weights: tuple[str, ...]


def lower_traced(traced: fx.GraphModule, call: Sequence[object]) -> TracedModel:
    """The ONNX model of what Dynamo traced, for calls with the weights and numbers of `call`.

    Args:
        traced: as Dynamo hands it to a backend; call: what stands for its placeholders, with real tensors.

    Raises:
        CaptureError: the graph cannot be exported, does more than compute its answers, or has no ONNX form.
    """
    import onnx_ir

    graph = tensor_graph(traced, call)
    inputs = tuple(value for value in (call[place] for place in graph.fed) if isinstance(value, Tensor))
    weights = dict(graph.graph_module.named_parameters())
    _check_types((*inputs, *weights.values()))
    axes = tuple(dict.fromkeys(varying, Dim.DYNAMIC) for varying in graph.varying)
    program = export_program(graph.graph_module, inputs, axes)
    _check_pure(program)
    model = translate_program(program, DEFAULT_OPSET)
    clean_model(model, DEFAULT_OPSET)
    used = tuple(name for name in weights if name in model.graph.initializers)
    for name in used:
        value = model.graph.initializers[name]
        size = weights[name].numel() * weights[name].element_size()
        value.const_value = onnx_ir.ExternalTensor(_ELSEWHERE, 0, size, value.dtype, shape=value.shape, name=name)
    names = tuple(str(value.name) for value in model.graph.inputs)
    return TracedModel(graph, onnx_ir.to_proto(model).SerializeToString(), names, used)


def _check_types(tensors: Sequence[Tensor]) -> None:
    odd = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors if tensor.dtype not in _DTYPES})
    if odd:
        raise CaptureError(
            "The graph holds types that do not go from torch to ONNX Runtime.",
            given=", ".join(odd),
            expected=", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in _DTYPES)),
            remedy="model.float()",
        )


def _check_pure(program: ExportedProgram) -> None:
    """Refuse graphs that do more than compute their answers.

    Raises:
        CaptureError: random numbers, or something that was passed is written to.
    """
    calls = list(_operators(program))
    drawn = sorted({str(operator) for operator, node in calls if _is_random(operator, node)})
    if drawn:
        raise CaptureError(
            "The graph draws random numbers, and ONNX Runtime's are not torch's.",
            given=", ".join(drawn),
            expected="a graph that answers the same every time",
            remedy="model.eval() switches dropout off",
        )
    if not any(operator._schema.is_mutable for operator, _ in calls):
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own, when it copies a program
        signature = program.run_decompositions({}).graph_signature
    written = [*signature.buffers_to_mutate.values(), *signature.user_inputs_to_mutate.values()]
    written += signature.parameters_to_mutate.values()
    if written:
        raise CaptureError(
            "The graph writes to a buffer, a weight or an input, which stays torch's.",
            given=", ".join(written),
            expected="a graph that only computes its answers",
            remedy="model.eval(), or use_cache=False",
        )


def _operators(program: ExportedProgram) -> Iterator[tuple[torch._ops.OpOverload, fx.Node]]:
    """The operators that the program calls, also in graphs within it, each with its node."""
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, fx.GraphModule) else ():
            if isinstance(node.target, torch._ops.OpOverload):
                yield node.target, node


def _is_random(operator: torch._ops.OpOverload, node: fx.Node) -> bool:
    if torch.Tag.nondeterministic_seeded not in operator.tags:
        return False
    arguments = {argument.name: argument.default_value for argument in operator._schema.arguments}
    arguments |= dict(zip(arguments, node.args, strict=False)) | node.kwargs
    return all(bool(arguments[switch]) for switch in _SWITCHES if switch in arguments)
