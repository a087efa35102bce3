"""Models of one native layer, fed with a `LinearCase`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

from gatefx.runtime.ops.onnx_functions import DOMAIN, VERSION, bodies_needed

from . import runs
from .linear_cases import LinearCase
from .runs import opened

LAYER = ["x", "weight", "bias", "lora_a", "lora_b"]
RANK_GATED = ("GatedLinear", [*LAYER, "indices", "scale"])
TOKEN_GATED = ("TokenGatedLinear", [*LAYER, "gram", "threshold", "scale"])
ROUTED = ("RoutedLinear", ["x", "weight", "weight1", "bias", "choice"])
WEIGHTS = (*LAYER[1:], "weight1", "gram", "scale")
FED = (torch.float32, torch.float64, torch.float16)


def session(
    folder: Path | None,
    operator: tuple[str, list[str]],
    feed: dict[str, np.ndarray],
    fixed: tuple[str, ...],
    threads: int,
) -> Any:
    """On a model of one node. Without a folder the node's own body runs."""
    return opened(layer_model(operator, feed, fixed), folder, threads)


def layer_model(
    operator: tuple[str, list[str]], feed: dict[str, np.ndarray], fixed: tuple[str, ...], *, gelu: bool = False
) -> onnx.ModelProto:
    """A model of one node, or of it and GELU of its answer; `fixed` are weights of the model."""
    name, names = operator
    kinds = {key: helper.np_dtype_to_tensor_dtype(value.dtype) for key, value in feed.items()}
    open_axes: list[int | str] = [f"a{axis}" for axis in range(feed["x"].ndim - 1)]
    axes = {"x": [*open_axes, feed["x"].shape[-1]], "choice": open_axes, "indices": ["a0", feed["lora_a"].shape[0]]}
    inputs = [
        helper.make_tensor_value_info(key, kinds[key], axes.get(key, feed[key].shape))
        for key in names
        if key not in fixed
    ]
    graph = helper.make_graph(
        [helper.make_node(name, names, ["s" if gelu else "y"], domain=DOMAIN)]
        + [helper.make_node("Gelu", ["s"], ["y"])] * gelu,
        "one_layer",
        inputs,
        [helper.make_tensor_value_info("y", kinds["x"], [*open_axes, feed["weight"].shape[0]])],
        [numpy_helper.from_array(feed[key], key) for key in fixed if key in names],
    )
    model = helper.make_model(
        graph,
        functions=list(bodies_needed([name], 23).values()),
        opset_imports=[helper.make_opsetid("", 23), helper.make_opsetid(DOMAIN, VERSION)],
        ir_version=10,
    )
    onnx.checker.check_model(model)
    return model


def run(made: Any, feed: dict[str, np.ndarray], **replaced: Any) -> torch.Tensor:
    feed = {**feed, **{name: np.asarray(value, feed[name].dtype) for name, value in replaced.items()}}
    return runs.run(made, feed)


def fed(case: LinearCase) -> dict[str, np.ndarray]:
    return {**case.arrays(list(case.tensors)), "threshold": np.zeros((), case.tensors["x"].numpy().dtype)}
