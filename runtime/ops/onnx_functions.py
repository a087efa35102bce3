"""The custom operators in ONNX: what writes their nodes, and their bodies in standard ONNX.

A model that uses an operator carries its body as a local function of the domain `gatefx`. A runtime that has a kernel
of that name runs the kernel; every other one inlines the body, which is the operator's specification.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from .domain import DOMAIN, VERSION
from .linear_ops import gated_linear, token_gated_linear
from .onnx_cache_functions import translate_index_copy
from .onnx_linear_functions import (
    GatedLinear,
    TokenGatedLinear,
    translate_gated_linear,
    translate_token_gated_linear,
)
from .onnx_rank_functions import GatedLora, translate_gated_lora
from .onnx_token_functions import (
    GatherLastTokens,
    GatherTokens,
    GatherTokensAlong,
    ScatterTokens,
    SelectTokens,
    translate_gather_tokens,
    translate_scatter_tokens,
    translate_select_tokens,
)
from .onnx_update_functions import (
    RoutedLinear,
    RoutedRows,
    TokenGatedLora,
    translate_routed_linear,
    translate_token_gated_lora,
)
from .onnx_visible_functions import VisibleKeys, translate_visible_keys
from .schema import gated_lora
from .token_ops import gather_tokens, scatter_tokens, select_tokens
from .update_ops import routed_linear, token_gated_lora
from .visible_ops import visible_keys

if TYPE_CHECKING:
    import onnx

__all__ = ["DOMAIN", "VERSION", "bodies_needed", "function_protos", "translations"]

_FUNCTIONS = (
    GatedLora,
    SelectTokens,
    GatherTokens,
    GatherLastTokens,
    GatherTokensAlong,
    ScatterTokens,
    TokenGatedLora,
    RoutedRows,
    RoutedLinear,
    GatedLinear,
    TokenGatedLinear,
    VisibleKeys,
)


def translations() -> Mapping[Callable[..., Any], Callable[..., Any]]:
    """For each custom torch operator, what writes its ONNX node while torch.onnx translates a graph.

    One of torch's own is among them, which torch.onnx writes less well.
    """
    return {
        gated_lora._opoverload: translate_gated_lora,
        select_tokens._opoverload: translate_select_tokens,
        gather_tokens._opoverload: translate_gather_tokens,
        scatter_tokens._opoverload: translate_scatter_tokens,
        token_gated_lora._opoverload: translate_token_gated_lora,
        routed_linear._opoverload: translate_routed_linear,
        gated_linear._opoverload: translate_gated_linear,
        token_gated_linear._opoverload: translate_token_gated_linear,
        visible_keys._opoverload: translate_visible_keys,
        torch.ops.aten.index_copy.default: translate_index_copy,
    }


def function_protos(opset: int) -> Mapping[str, onnx.FunctionProto]:
    """The bodies by operator name, for a model that imports standard ONNX at `opset` (18 or later).

    The operators used mean the same in every such opset; some runtimes want function and model to name the same one.
    """
    protos = {}
    for function in _FUNCTIONS:
        proto = function.to_function_proto()
        for needed in proto.opset_import:
            needed.version = opset if needed.domain == "" else needed.version
        protos[proto.name] = proto
    return protos


def bodies_needed(names: Iterable[str], opset: int) -> Mapping[str, onnx.FunctionProto]:
    """The bodies that a model with nodes `names` of the domain carries: theirs, and those that these are written in."""
    protos = function_protos(opset)
    own = {name for name in names if name in protos}
    inner = {node.op_type for name in own for node in protos[name].node if node.domain == DOMAIN}
    return {name: proto for name, proto in protos.items() if name in own | inner}
